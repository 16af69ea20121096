"""Random faults, clients written from docs/protocol.md alone, and a judge with the truth.

    faults.py     the possible faults, drawn from a seed
        │
    world.py      NATS, two servers, and their surroundings; each part can be broken
        │
        ├── publisher.py    numbered events, and which of them NATS acknowledged
        ├── recorder.py     reads the stream independently
        └── client.py       a socket that can be cut at any byte …
              └── follower.py    … and its owner's conclusions, by the rules of the page

    truth.py      the content of the stream, from all observations: lives and places
    judge.py      compares each client's conclusions with it
    run.py        several worlds at once, and their sum

Some clients get every event; others have rates, change them and pause. At a rate an event stands
for the older ones of its channel that it `skipped`, and the judge counts these.

A run ends with a verdict: the number of events delivered, skipped, and declared missing, and the
violations of the page: losses without a declaration, repeats, wrong counts, and the like. At the
end the ledger of each server has to balance.
"""

"""Random faults, clients written from docs/protocol.md alone, and a judge who knows the truth.

    faults.py     what can break, drawn from a seed
        │
    world.py      NATS, two servers, and what runs around them; each part can be broken
        │
        ├── publisher.py    numbered events, and which of them NATS acknowledged
        ├── recorder.py     reads the stream by itself all along
        └── client.py       a socket that can be cut at any byte …
              └── follower.py    … and what its owner may conclude, by the three rules of the page

    truth.py      what the stream held, of all that anybody saw: lives and places
    judge.py      holds what each client concluded against it
    run.py        several worlds at once, and the sum of them

A run ends with a verdict: how many events were delivered, how many were declared missing, and what
the page does not allow: losses that nothing declares, repeats, and the like.
"""

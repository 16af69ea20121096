"""A load: many subscribers in other processes that check every envelope they receive.

    LoadPlan ──► run_load ──► LoadResult ──► criteria ──► checks
                    │ a sample a second
                    ├── fleets      the clients
                    ├── /metrics    what the server says of itself
                    └── publisher   started and stopped, if it is ours to tell

Architecture invariant: no server code is imported here, so a load cannot cheat.
"""

"""A load: many subscribers in other processes that check every envelope they receive.

    LoadPlan ──► run_load ──► LoadResult ──► criteria ──► checks
                    │ a sample a second
                    ├── fleets      the clients
                    ├── /metrics    the server's own figures
                    └── publisher   started and stopped, if the plan names it

Architecture invariant: no server code is imported here, so a load cannot cheat.
"""

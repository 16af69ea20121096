"""Three hosts on one machine: network namespaces, and a cgroup's limits.

Nothing here depends on the programs of the hosts. A `Host` turns a command line into one that
runs on that host, `Limits` does the same for the server's machine, and both can be combined:
`ws.command(limits.command([...]))`.
"""

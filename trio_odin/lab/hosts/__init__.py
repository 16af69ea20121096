"""Three hosts on one machine: network namespaces, and a cgroup's limits.

Nothing here knows what runs on the hosts. A `Host` turns the words of a program into those that
run it there, `Limits` does the same for the server's machine, and both can be combined:
`ws.command(limits.command([...]))`.
"""

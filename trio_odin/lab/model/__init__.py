"""The cost of a demand: CPU, memory, machines and money, from measured costs. Pure arithmetic."""

"""What a demand costs: CPU, memory, machines and money, from measured costs. Pure arithmetic."""

"""The drill of incidents: what a person on call sees of each, where, and after how long."""

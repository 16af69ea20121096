"""The capacity lab: three isolated hosts, stages with criteria, a verdict, and a model of cost."""

"""How each family of models writes tool calls: one table (families.py), its readers and grammars."""

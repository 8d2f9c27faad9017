"""Tables to rows: what is computed, recorded and resumed."""

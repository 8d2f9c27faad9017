"""The paper's tables, declared; its published numbers."""

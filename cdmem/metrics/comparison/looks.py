def error_at_look(look: int, total: float = 0.05) -> float:
    return total / (look * (look + 1))

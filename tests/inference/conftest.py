from tests.eval.workspace import workspace

__all__ = ["workspace"]

from tests.eval.qa_workspace import colour_questions
from tests.eval.workspace import workspace

__all__ = ["colour_questions", "workspace"]

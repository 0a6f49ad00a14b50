"""What a bundle's answers are worth: questions with known answers, scored; and perplexity on a text.

    question_set   JSONL beside its pictures ─▶ questions            (a line that is wrong is named)
    run            questions ─▶ engine ─▶ answers, one by one
    report         answers ─▶ exact match and character accuracy per kind and group; two runs, paired
    perplexity     a text ─▶ engine ─▶ perplexity with its standard error

`scoring` holds the arithmetic, and knows nothing about files or engines.
"""

from handlens_runtime.evaluation.perplexity import Perplexity, PerplexityRatio, measure, windows
from handlens_runtime.evaluation.question_set import Question, QuestionSet, read_set
from handlens_runtime.evaluation.report import Answer, Difference, Evaluation, Score
from handlens_runtime.evaluation.run import ask, evaluate

__all__ = [
    "Answer",
    "Difference",
    "Evaluation",
    "Perplexity",
    "PerplexityRatio",
    "Question",
    "QuestionSet",
    "Score",
    "ask",
    "evaluate",
    "measure",
    "read_set",
    "windows",
]

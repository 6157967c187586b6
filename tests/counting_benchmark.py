"""A benchmark of two categories, and policies that answer it by script."""

import re

from rest_core import response
from rest_core.config import GenerationConfig
from rest_core.evaluation.benchmark import Benchmark, Figures, Question
from rest_core.evaluation.policy import Answer, Chat
from rest_core.evaluation.statistics import Accuracy, Average
from rest_core.evaluation.taxonomy import ExpectedCall
from rest_core.records import Message, Tool, ToolCall

HOSTILE = '</pre><script>alert(1)</script> \ud800 [bold]x[/bold] \x1b[2J <img src=x onerror="alert(2)">'
ADD = Tool("add", "Add <numbers>.", {"type": "object", "properties": {"n": {"type": "integer"}}})


class Counting(Benchmark):
    """ "Call add with n": 20 easy items and 10 hard ones."""

    name = "counting"
    title = "Counting"

    def __init__(self, limit=None, generation=None, asked="Add", checker="1"):
        super().__init__(generation or GenerationConfig(), limit, seed=0)
        self.asked, self.version = asked, checker

    @property
    def checker(self):
        return f"counting {self.version}"

    def questions(self):
        sizes = {"easy": 20, "hard": 10}
        return {
            part: [Question(f"{part}-{n}", part, n, (ExpectedCall("add", {"n": n}),)) for n in range(size)]
            for part, size in sizes.items()
        }

    def chat(self, question):
        return Chat((ADD,), (Message("user", f"{self.asked} {question.id}."),))

    def judge(self, questions, answers):
        return [
            {"valid": [call.arguments for call in answer.parsed.calls] == [{"n": question.entry}]}
            for question, answer in zip(questions, answers, strict=True)
        ]

    def figures(self, rows):
        right = {part: [row["valid"] for row in rows if row["category"] == part] for part in ("easy", "hard")}
        scores = {part: Accuracy(sum(found), len(found)) for part, found in right.items()}
        return Figures(scores, {"both": Average(scores, {"easy": 0.5, "hard": 0.5})}, headline=("both",))


class Scripted:
    """A policy that answers some items rightly; its answer to the others is a text."""

    condition, native_tools, keeps_prompts = "style plain", False, True

    def __init__(self, name, right, wrong="", template="T"):
        self.name, self.right, self.wrong, self.template = name, set(right), wrong, template

    def respond(self, chats, config, on_progress=None):
        answers = []
        for chat in chats:
            part, number = re.search(r"(easy|hard)-(\d+)", chat.history[-1].content).groups()
            call = ToolCall("add", {"n": int(number)})
            text = response.render(think=None, calls=[call], response=None)
            answers.append(Answer(text if f"{part}-{number}" in self.right else self.wrong, 7, 5, True, seconds=0.5))
        return answers


def ids(part, *numbers):
    return [f"{part}-{number}" for number in numbers]

"""xLAM-60k as published (Salesforce/xlam-function-calling-60k): {id, query, tools, answers}.

`tools` and `answers` are JSON arrays in strings: tools as {name, description, parameters: {name: {type: "str,
optional", description, default}}}, answers as {name, arguments}. Every record is one question with calls as its answer;
an empty array of answers says that no tool fits.
"""

from __future__ import annotations

from rest_core.data.dialogues import Dialogue
from rest_core.data.fields import Record
from rest_core.data.readers import chat


def read(record: Record) -> Dialogue:
    question = ("query", chat.Plain("user", record.fields.get("query")))
    answer = ("answers", chat.Plain("function_call", record.fields.get("answers")))
    return chat.dialogue(record, [question, answer], "query")

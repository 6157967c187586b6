"""API-Bank, levels 1 to 3, as ToolRL processed it (benchmarks/API-Bank of qiancheng0/ToolRL).

The files `level-<n>-api_processed.json` hold items of {system, user, answer}; system and user message are the whole
prompt, format instructions included. `answer` is one call {"name", "parameters"}, bare or in a list.

Two ways to score a response, both on what the one parser reads (a block that is not closed holds no call):

`soft` is the rule of the authors' evaluate.py, for comparison with published figures: right when any call is the
wanted one, however many others there are; and a line of a tool_call block that is a JSON object without both "name"
and "parameters" is taken for the parameters of a call with the right name. Values are compared as Python compares
them (1 == 1.0 == True). The authors' generate.py reads the last tool_call block only and closes one that is left open;
it takes {"name", "arguments"} for bare parameters, where we read a call.

`strict`: exactly one call, with the same name and the same parameters as JSON (1, 1.0 and true differ).

The overall figure is the mean over all items, as in the paper ("overall (597)": 399 + 67 + 131 items).
"""

from __future__ import annotations

from rest_core.data.api_bank_files import LEVELS

SCORES = tuple(f"{part}_{rule}" for rule in ("soft", "strict") for part in (*(f"level_{n}" for n in LEVELS), "overall"))
"""The names under which accuracies are reported, `api_bank/` before them."""

"""A tool environment of one's own: a warehouse whose stock is reserved and released.

    dialogues = run_dialogues([Warehouse(stock, turns, wanted) for …], policy, generation, max_steps=10)
    [dialogue.environment.verdict(dialogue.stop) for dialogue in dialogues]

It is right when the stock and the reservations at the end are those wanted, by whatever calls they came about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rest_core.environments.environment import Stop, Verdict
from rest_core.records import Message, Tool, ToolCall

_ITEM = {"type": "string", "description": "name of the item"}
_QUANTITY = {"type": "integer", "minimum": 1}


def _tool(name: str, description: str, **properties: Any) -> Tool:
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(properties)})


class Warehouse:
    """`rest_core.environments.environment.Environment`.

    Args:
        stock: pieces of each item at the start.
        turns: the user's messages, one a turn.
        wanted: the state at the end: {"stock": {item: pieces}, "reserved": {customer: {item: pieces}}}.
    """

    tools = (
        _tool("count", "How many pieces of an item are free.", item=_ITEM),
        _tool("reserve", "Reserve pieces for a customer.", item=_ITEM, quantity=_QUANTITY, customer={"type": "string"}),
        _tool("release", "Give all that a customer has reserved back to the stock.", customer={"type": "string"}),
    )

    documents = None  # `tools` is no translation of other descriptions

    def __init__(self, stock: dict[str, int], turns: Sequence[str], wanted: dict[str, Any]) -> None:
        self.stock, self.reserved = dict(stock), dict[str, dict[str, int]]()
        self._turns, self._wanted = iter(turns), wanted

    def user_turn(self, said: str) -> tuple[Message, ...] | None:
        text = next(self._turns, None)
        return None if text is None else (Message("user", text),)

    def step(self, calls: Sequence[ToolCall]) -> list[str]:
        return [json.dumps(self._call(call)) for call in calls]

    def verdict(self, stop: Stop) -> Verdict:
        if stop != "completed":
            return Verdict(False, stop, "the dialogue did not come to its end")
        state = {"stock": self.stock, "reserved": self.reserved}
        if state != self._wanted:
            return Verdict(False, "wrong_state", f"{json.dumps(state)} instead of {json.dumps(self._wanted)}")
        return Verdict(True)

    def _call(self, call: ToolCall) -> dict[str, Any]:
        """The result, or why there is none: names and arguments may be anything."""
        tool = next((tool for tool in self.tools if tool.name == call.name), None)
        if tool is None:
            return {"error": f"no tool {call.name!r}"}
        if set(call.arguments) != set(tool.parameters["properties"]):
            return {"error": f"arguments of {call.name}: {', '.join(tool.parameters['properties'])}"}
        result: dict[str, Any] = getattr(self, f"_{call.name}")(**call.arguments)
        return result

    def _count(self, item: Any) -> dict[str, Any]:
        if not isinstance(item, str) or item not in self.stock:
            return {"error": f"no item {item!r}"}
        return {"free": self.stock[item]}

    def _reserve(self, item: Any, quantity: Any, customer: Any) -> dict[str, Any]:
        found = self._count(item)
        if "error" in found:
            return found
        if type(quantity) is not int or quantity < 1 or not isinstance(customer, str):
            return {"error": "quantity is a number of pieces, customer a name"}
        if quantity > found["free"]:
            return {"error": f"only {found['free']} free"}
        self.stock[item] -= quantity
        theirs = self.reserved.setdefault(customer, {})
        theirs[item] = theirs.get(item, 0) + quantity
        return {"reserved": quantity}

    def _release(self, customer: Any) -> dict[str, Any]:
        if not isinstance(customer, str) or customer not in self.reserved:
            return {"error": f"nothing is reserved for {customer!r}"}
        released = self.reserved.pop(customer)
        for item, quantity in released.items():
            self.stock[item] += quantity
        return {"released": released}

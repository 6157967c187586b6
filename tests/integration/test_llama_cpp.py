"""A checkpoint's chat template in llama.cpp's own Jinja engine, which is compiled from its sources for that.

    LLAMA_CPP=/path/to/llama.cpp python -m pytest tests/integration/test_llama_cpp.py

The sources are those of https://github.com/ggml-org/llama.cpp, or vendor/llama.cpp in the source distribution of
llama-cpp-python (0.3.36).
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit" / "styles"))

from test_chat_template import DIALOGUES, STYLES, TOOLS, of_api, schemas

from rest_core.config import EMBEDDED_MODEL, ModelConfig
from rest_core.model.loading import load_tokenizer
from rest_core.styles.chat_template import chat_template
from rest_core.styles.create import built_in_style

SOURCES = os.environ.get("LLAMA_CPP", "")
HERE = Path(__file__).parent / "llama_cpp"
PARTS = [f"common/jinja/{part}.cpp" for part in ("lexer", "parser", "runtime", "string", "value", "caps")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCES, reason="LLAMA_CPP does not name the directory of llama.cpp's sources"),
]


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("llama") / "render"
    sources = [*PARTS, "common/json.cpp", "common/unicode.cpp"]
    includes = [f"-I{part}" for part in ("common", "vendor", "ggml/include")]
    command = ["g++", "-std=c++17", "-O1", *includes, str(HERE / "render.cpp"), *sources, "-o", str(program)]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("name", STYLES)
def test_it_writes_the_same_prompt(renderer: Path, tmp_path: Path, name: str, dialogue: Any) -> None:
    tokenizer = copy.deepcopy(load_tokenizer(EMBEDDED_MODEL, ModelConfig()))
    tokenizer.chat_template = chat_template(built_in_style(name), tokenizer.chat_template, {})
    messages, tools = of_api(dialogue), schemas(TOOLS)
    given = {"template": tokenizer.chat_template, "messages": messages, "tools": tools, "bos": tokenizer.bos_token}
    (tmp_path / "input.json").write_text(json.dumps(given), encoding="utf-8")
    done = subprocess.run([renderer, tmp_path / "input.json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    wanted = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    assert done.stdout.decode() == wanted

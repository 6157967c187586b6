// Renders a chat template with llama.cpp's Jinja engine: render INPUT.json, whose keys are template, messages, tools, bos.

#include "ggml.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "json.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

// What llama.cpp's JSON wrapper needs of ggml.
extern "C" void ggml_abort(const char * file, int line, const char *, ...) {
    fprintf(stderr, "%s:%d: aborted\n", file, line);
    abort();
}

int main(int, char ** arguments) {
    std::ifstream file(arguments[1]);
    std::stringstream text;
    text << file.rdbuf();
    auto given = common_json::parse(text.str());

    common_json variables = common_json::object();
    variables["messages"] = given["messages"];
    variables["tools"] = given["tools"];
    variables["bos_token"] = given["bos"];
    variables["add_generation_prompt"] = true;

    std::string source = given["template"].get<std::string>();
    jinja::lexer lexer;
    auto tokens = lexer.tokenize(source);
    jinja::program program = jinja::parse_from_tokens(tokens);
    jinja::context context(source);
    jinja::global_from_json(context, variables, true);
    jinja::runtime runtime(context);
    std::cout << jinja::runtime::gather_string_parts(runtime.execute(program))->as_string().str();
}

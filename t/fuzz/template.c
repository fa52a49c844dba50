/*
 * template.c - any bytes as a template, rendered over a small conversation
 * with little fuel: an output that is valid UTF-8 and within its limit, or an
 * error with text.
 */
#include <stdlib.h>
#include <string.h>

#include "template/impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char vars_text[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"be \\u00e4\"},"
    "{\"role\":\"user\",\"content\":\"a\\u0000<think>b</think>\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":"
    "{\"name\":\"f\",\"arguments\":{\"a\":1,\"b\":[1.5,true]}}}]}],"
    "\"l\":[3,1,2],\"d\":{\"a\":1,\"b\":{\"c\":\"x\"}},\"s\":\"a b,c\","
    "\"x\":7,\"y\":-2.5,\"add_generation_prompt\":true}";


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const struct template_limits limits = { 200000, 20000 };
    static json_t   *vars;
    struct err       e = { .text = "" };
    struct buf       out = { 0 };
    struct template *t = template_compile((const char *) data, n, &e);

    if (vars == NULL) {
        vars = json_loads(vars_text, JSON_ALLOW_NUL, NULL);
    }

    if (t == NULL) {
        if (e.text[0] == '\0' || strchr(e.text, '\n') != NULL) {
            abort();
        }

        return 0;
    }

    if (template_render(t, vars, &limits, &out, &e) != 0) {
        if (e.text[0] == '\0' || strchr(e.text, '\n') != NULL || out.n != 0) {
            abort();
        }

    } else if (out.n > limits.max_bytes || !ttext_valid(out.p, out.n)) {
        abort();
    }

    template_free(t);
    buf_free(&out);

    return 0;
}

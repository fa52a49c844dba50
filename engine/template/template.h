/*
 * template.h - chat templates: the subset of Jinja2 that models use, with
 * Hugging Face's environment (trim_blocks, lstrip_blocks, loopcontrols, its
 * tojson), interpreted with a fuel limit.  A template is model data, compiled
 * once at start; a request can never carry one.
 *
 * The exact subset is in the head of template.c.  Must not know tokenizers.
 */
#ifndef MOE_TEMPLATE_H
#define MOE_TEMPLATE_H

#include <jansson.h>

#include "base.h"

struct template;

struct template_limits {
    uint64_t    fuel;           /* evaluated nodes and copied bytes */
    size_t      max_bytes;      /* of output */
};

/* NULL: e says line, column, and what was expected. */
struct template *template_compile(const char *src, size_t n, struct err *e);
void template_free(struct template *t);

/*
 * Renders with the members of `vars` (an object, borrowed, not changed) as
 * variables.  0, or -1: e is the template's own raise_exception() text (then
 * e->text starts with "template: "), an error with its line, or a limit.
 * Thread-safe: a template is read-only after compilation.
 */
int template_render(const struct template *t, const json_t *vars,
                    const struct template_limits *limits, struct buf *out,
                    struct err *e);

/*
 * The chat template of a model directory: chat_template.jinja, or
 * tokenizer_config.json's chat_template (a string, or the "default" of a
 * list), as text.  0; 1: the model has none; -1: e.
 */
int template_find(const char *dir, struct buf *src, struct err *e);

#endif /* MOE_TEMPLATE_H */

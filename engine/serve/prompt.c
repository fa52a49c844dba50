/*
 * prompt.c - see serve/prompt.h.
 */
#include "serve/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "json_util.h"

/* What a template may do with one request: the real ones copy each byte a few
 * times; a tool's schema may be rendered more than once. */
#define FUEL_BASE       4000000
#define FUEL_PER_BYTE   256
#define TEXT_BASE       65536
#define TEXT_PER_BYTE   4


void
serve_prompt_free(struct serve_prompt *p)
{
    buf_free(&p->text);
    tokens_free(&p->ids);
}


static int
no_memory(struct serve_refusal *why)
{
    err_set(serve_refusal_set(why, ABI_E_BUSY, ""), "no memory for the prompt");
    why->retry_after_s = 1;

    return -1;
}


static int
invalid(struct serve_refusal *why, const char *param, const char *text)
{
    return err_set(serve_refusal_set(why, ABI_E_INVALID, param), "%s", text);
}


/* The last message, where the template is to leave it open for the model. */
static const json_t *
message_to_continue(const json_t *vars)
{
    const json_t *list = json_object_get(vars, "messages");
    const json_t *last = json_array_get(list, json_array_size(list) - 1);
    const char   *role = json_string_value(json_object_get(last, "role"));

    return json_is_true(json_object_get(vars, "continue_final_message"))
           && role != NULL && strcmp(role, "assistant") == 0 ? last : NULL;
}


/* Cuts the text behind the last place where the message's content stands, as
 * HF's continue_final_message does. */
static int
cut_after(struct buf *text, const json_t *message)
{
    const json_t *content = json_object_get(message, "content");
    const char   *p = json_string_value(content);
    size_t        n = json_string_length(content);

    while (n > 0 && strchr(" \t\r\n", p[n - 1]) != NULL) {
        n--;
    }

    for (size_t at = text->n; n > 0 && at >= n; at--) {
        if (memcmp(text->p + at - n, p, n) == 0) {
            text->n = at;
            text->p[at] = '\0';
            return 0;
        }
    }

    return -1;
}


static int
set_string(json_t *vars, const char *name, struct slice s)
{
    /* Not there in the model: then it is not in the request either. */
    if (s.p == NULL) {
        json_object_del(vars, name);
        return 0;
    }

    return json_object_set_new(vars, name, json_stringn_nocheck(s.p, s.n));
}


/* The request's variables, and over them those that are not its to choose. */
static int
set_vars(const struct serve_model *m, json_t *vars, int generation)
{
    const struct tokenizer *t = m->tokenizer;

    return set_string(vars, "bos_token", tokenizer_bos(t)) != 0
           || set_string(vars, "eos_token", tokenizer_eos(t)) != 0
           || set_string(vars, "pad_token", tokenizer_pad(t)) != 0
           || set_string(vars, "unk_token", tokenizer_unk(t)) != 0
           || json_object_set_new(vars, "add_generation_prompt",
                                  json_boolean(generation)) != 0
           ? -1 : 0;
}


static int
check_messages(const json_t *vars, struct serve_refusal *why)
{
    const json_t *messages = json_object_get(vars, "messages");

    if (json_array_size(messages) == 0) {
        return invalid(why, "messages", "messages: expected a list of at least "
                       "one message");
    }

    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i);

        if (!json_is_string(json_object_get(m, "role"))) {
            return err_set(serve_refusal_set(why, ABI_E_INVALID, "messages"),
                           "messages[%zu]: expected an object with a role", i);
        }
    }

    return 0;
}


static int
render(const struct serve_model *m, const struct serve_request *r,
       struct buf *text, struct serve_refusal *why)
{
    struct err  e;
    int         rc = -1;
    json_t     *vars = json_parse(r->body.p, r->body.n, &e);

    if (vars == NULL || !json_is_object(vars)) {
        invalid(why, "messages", vars == NULL ? e.text : "not an object");
        goto done;
    }

    if (check_messages(vars, why) != 0) {
        goto done;
    }

    const json_t *open = message_to_continue(vars);

    if (set_vars(m, vars, open == NULL) != 0) {
        no_memory(why);
        goto done;
    }

    struct template_limits limits = {
        .fuel = FUEL_BASE + FUEL_PER_BYTE * (uint64_t) r->body.n,
        .max_bytes = TEXT_BASE + TEXT_PER_BYTE * r->body.n
    };

    if (template_render(m->template, vars, &limits, text, &e) != 0) {
        invalid(why, "messages", e.text);
        goto done;
    }

    if (open != NULL && cut_after(text, open) != 0) {
        invalid(why, "messages", "continue_final_message: the chat template "
                "does not show the last message's content");
        goto done;
    }

    rc = 0;

done:

    json_decref(vars);

    return rc;
}


static int
begins(struct slice s, struct slice with)
{
    return s.n >= with.n && memcmp(s.p, with.p, with.n) == 0;
}


/* Did the tokenizer put its BOS in front?  Then there is one more than in the
 * text, which may begin with its own. */
static int
bos_was_added(const struct serve_model *m, const struct serve_prompt *p)
{
    struct slice bos = tokenizer_bos(m->tokenizer);
    struct slice text = { p->text.p, p->text.n };
    size_t       n = 0;

    if (bos.p == NULL || bos.n == 0) {
        return 0;
    }

    for (; begins(text, bos); n++) {
        text = (struct slice) { text.p + bos.n, text.n - bos.n };
    }

    if (p->ids.n <= n) {
        return 0;
    }

    struct slice piece = tokenizer_piece(m->tokenizer, p->ids.ids[n]);

    return piece.n == bos.n && begins(piece, bos);
}


static int
encode(const struct serve_model *m, const struct serve_request *r,
       struct serve_prompt *p, struct serve_refusal *why)
{
    struct err e = { "" };
    unsigned   flags = TOKENIZER_ADDED
                       | (r->abi.kind == ABI_CHAT ? 0 : TOKENIZER_BOS);

    if (tokenizer_encode(m->tokenizer, p->text.p, p->text.n, flags, &p->ids,
                         &e) != 0)
    {
        return invalid(why, r->abi.kind == ABI_CHAT ? "messages" : "prompt",
                       e.text);
    }

    p->hidden = bos_was_added(m, p);

    return 0;
}


static int
copy_ids(const struct serve_request *r, struct tokens *ids)
{
    for (size_t i = 0; i < r->body.n; i += sizeof(uint32_t)) {
        uint32_t id;

        memcpy(&id, r->body.p + i, sizeof(id));

        if (tokens_add(ids, id) != 0) {
            return -1;
        }
    }

    return 0;
}


/* A model needs one token to say anything, and room for one to say. */
static int
check_length(const struct serve_model *m, const struct serve_request *r,
             const struct serve_prompt *p, struct serve_refusal *why)
{
    int         chat = r->abi.kind == ABI_CHAT;
    const char *param = chat ? "messages" : "prompt";

    if (p->ids.n == 0) {
        return invalid(why, param, "the prompt has no tokens");
    }

    if (p->ids.n >= m->n_ctx_tok) {
        return err_set(serve_refusal_set(why, ABI_E_CONTEXT, param),
                       "This model's maximum context length is %u tokens. "
                       "However, your %s resulted in %zu tokens. Please reduce "
                       "the length of the %s.", m->n_ctx_tok,
                       chat ? "messages" : "prompt", p->ids.n, param);
    }

    for (size_t i = 0; i < p->ids.n; i++) {
        if (p->ids.ids[i] >= m->n_vocab) {
            return invalid(why, param, "the prompt has a token that is not in "
                           "the model's vocabulary");
        }
    }

    return 0;
}


int
serve_prompt_make(const struct serve_model *m, const struct serve_request *r,
                  struct serve_prompt *p, struct serve_refusal *why)
{
    int rc;

    why->code = 0;

    switch (r->abi.kind) {
    case ABI_CHAT:
        if (m->template == NULL) {
            return invalid(why, "messages", "this model has no chat template; "
                           "use /v1/completions");
        }

        rc = render(m, r, &p->text, why);
        rc = rc != 0 ? rc : encode(m, r, p, why);
        break;

    case ABI_COMPLETION:
        rc = buf_add(&p->text, r->body.p, r->body.n) != 0
             ? no_memory(why) : encode(m, r, p, why);
        break;

    default:
        rc = copy_ids(r, &p->ids) != 0 ? no_memory(why) : 0;
        break;
    }

    return rc != 0 ? rc : check_length(m, r, p, why);
}

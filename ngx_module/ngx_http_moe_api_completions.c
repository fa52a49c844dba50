/*
 * ngx_http_moe_api_completions.c - OpenAI's (legacy) completions.
 *
 * In: a JSON body with a prompt as text or as token ids; typed events.  Out:
 * the prompt, as it is; text_completion objects, whole or in chunks.
 * Must not know channels or sockets.
 */

#include "ngx_http_moe_module.h"


static ngx_int_t ngx_http_moe_completions_parse(ngx_http_moe_ctx_t *ctx,
    json_t *body);
static ngx_int_t ngx_http_moe_completions_ids(ngx_http_moe_ctx_t *ctx,
    json_t *list);
static ngx_int_t ngx_http_moe_completions_prompt(ngx_http_moe_ctx_t *ctx);

static void ngx_http_moe_completions_delta(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_delta_t *delta);
static void ngx_http_moe_completions_finish(ngx_http_moe_ctx_t *ctx,
    ngx_uint_t choice);
static void ngx_http_moe_completions_whole(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_completions_echo(ngx_http_moe_ctx_t *ctx,
    const u_char *logprobs);
static void ngx_http_moe_completions_logprobs(ngx_http_moe_choice_t *choice,
    const ngx_http_moe_delta_t *delta);
static void ngx_http_moe_completions_logprob(ngx_http_moe_choice_t *choice,
    const u_char **p, ngx_uint_t n_top);
static void ngx_http_moe_completions_tops(ngx_http_moe_text_t *text,
    const u_char **p, ngx_uint_t n, ngx_uint_t n_top);
static void ngx_http_moe_completions_arrays(ngx_http_moe_text_t *out,
    ngx_http_moe_choice_t *choice);
static ngx_uint_t ngx_http_moe_completions_chars(const ngx_str_t *s);


const ngx_http_moe_api_t  ngx_http_moe_api_completions = {
    "text_completion",
    "text_completion",
    ngx_http_moe_completions_parse,
    ngx_http_moe_completions_delta,
    ngx_http_moe_completions_finish,
    ngx_http_moe_completions_whole,
    ngx_http_moe_completions_echo,
    NGX_HTTP_MOE_TEXTS
};


/* prompt := string | [ string ] | [ id, ... ] | [ [ id, ... ] ] */

static ngx_int_t
ngx_http_moe_completions_parse(ngx_http_moe_ctx_t *ctx, json_t *body)
{
    json_t     *prompt;
    ngx_int_t   rc;

    rc = ngx_http_moe_params_parse(ctx, body, NGX_HTTP_MOE_COMPLETIONS);
    if (rc != NGX_OK) {
        return rc;
    }

    prompt = json_object_get(body, "prompt");

    if (prompt == NULL || json_is_null(prompt)) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                                  "missing_required_parameter", "prompt",
                                  "Missing required parameter: 'prompt'.");
    }

    if (json_is_array(prompt) && json_array_size(prompt) == 1
        && (json_is_string(json_array_get(prompt, 0))
            || json_is_array(json_array_get(prompt, 0))))
    {
        prompt = json_array_get(prompt, 0);
    }

    if (json_is_string(prompt)) {
        return ngx_http_moe_params_payload(ctx, ABI_COMPLETION,
                                           json_string_value(prompt), NULL,
                                           json_string_length(prompt));
    }

    if (json_is_array(prompt) && json_array_size(prompt) != 0) {
        return ngx_http_moe_completions_ids(ctx, prompt);
    }

    return ngx_http_moe_completions_prompt(ctx);
}


static ngx_int_t
ngx_http_moe_completions_prompt(ngx_http_moe_ctx_t *ctx)
{
    return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                              "prompt",
                              "Invalid 'prompt': expected a string, an array "
                              "of one string, or an array of token ids.");
}


static ngx_int_t
ngx_http_moe_completions_ids(ngx_http_moe_ctx_t *ctx, json_t *list)
{
    size_t     i, n;
    json_t    *v;
    int64_t    id;
    uint32_t  *ids;
    ngx_int_t  rc;

    n = json_array_size(list);

    if (n > ABI_REQUEST_MAX / sizeof(uint32_t)) {
        return ngx_http_moe_completions_prompt(ctx);
    }

    ids = ngx_palloc(ctx->request->pool, n * sizeof(uint32_t));
    if (ids == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (i = 0; i < n; i++) {

        v = json_array_get(list, i);
        id = json_integer_value(v);

        if (!json_is_integer(v) || id < 0 || id > INT32_MAX) {
            return ngx_http_moe_completions_prompt(ctx);
        }

        ids[i] = (uint32_t) id;
    }

    rc = ngx_http_moe_params_payload(ctx, ABI_COMPLETION_IDS, ids, NULL,
                                     n * sizeof(uint32_t));

    (void) ngx_pfree(ctx->request->pool, ids);

    return rc;
}


static void
ngx_http_moe_completions_delta(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_delta_t *delta)
{
    ngx_http_moe_text_t    *out;
    ngx_http_moe_choice_t  *choice;

    choice = &ctx->choices[delta->choice];

    ngx_http_moe_completions_logprobs(choice, delta);

    if (!ctx->params.stream) {
        ngx_http_moe_text_json(&choice->content, delta->text.data,
                               delta->text.len);
        return;
    }

    if (delta->text.len == 0 && delta->n_logprobs == 0) {
        return;
    }

    out = &ctx->out;

    ngx_http_moe_stream_event(ctx);
    ngx_http_moe_text_lit(out, "{\"text\":\"");
    ngx_http_moe_text_json(out, delta->text.data, delta->text.len);
    ngx_http_moe_text_lit(out, "\",\"index\":");
    ngx_http_moe_text_uint(out, delta->choice);

    if (delta->n_logprobs) {
        ngx_http_moe_text_lit(out, ",\"logprobs\":");
        ngx_http_moe_completions_arrays(out, choice);
        ngx_http_moe_text_lit(out, ",\"finish_reason\":null");

    } else {
        ngx_http_moe_text_lit(out, ",\"logprobs\":null,"
                                   "\"finish_reason\":null");
    }

    ngx_http_moe_text_add(out, ctx->suffix.data, ctx->suffix.len);
}


static void
ngx_http_moe_completions_finish(ngx_http_moe_ctx_t *ctx, ngx_uint_t choice)
{
    ngx_http_moe_text_t  *out;

    if (!ctx->params.stream) {
        return;
    }

    out = &ctx->out;

    ngx_http_moe_stream_event(ctx);
    ngx_http_moe_text_lit(out, "{\"text\":\"\",\"index\":");
    ngx_http_moe_text_uint(out, choice);

    ngx_http_moe_text_lit(out, ",\"logprobs\":");

    /* Those of an echoed prompt, which no token has followed. */

    if (ngx_http_moe_text_len(&ctx->choices[choice].logprobs)) {
        ngx_http_moe_completions_arrays(out, &ctx->choices[choice]);

    } else {
        ngx_http_moe_text_lit(out, "null");
    }

    if (ctx->choices[choice].reason == ABI_LENGTH) {
        ngx_http_moe_text_lit(out, ",\"finish_reason\":\"length\"");

    } else {
        ngx_http_moe_text_lit(out, ",\"finish_reason\":\"stop\"");
    }

    ngx_http_moe_text_add(out, ctx->suffix.data, ctx->suffix.len);
}


static void
ngx_http_moe_completions_whole(ngx_http_moe_ctx_t *ctx)
{
    ngx_uint_t              i;
    ngx_http_moe_text_t    *out;
    ngx_http_moe_choice_t  *choice;

    out = &ctx->out;

    for (i = 0; i < ctx->params.abi.n_choices; i++) {

        choice = &ctx->choices[i];

        if (i) {
            ngx_http_moe_text_lit(out, ",");
        }

        ngx_http_moe_text_lit(out, "{\"text\":\"");
        ngx_http_moe_text_add(out, choice->content.start,
                              ngx_http_moe_text_len(&choice->content));
        ngx_http_moe_text_lit(out, "\",\"index\":");
        ngx_http_moe_text_uint(out, i);
        ngx_http_moe_text_lit(out, ",\"logprobs\":");

        if (ctx->params.abi.flags & ABI_FLAG_LOGPROBS) {
            ngx_http_moe_completions_arrays(out, choice);

        } else {
            ngx_http_moe_text_lit(out, "null");
        }

        ngx_http_moe_prompt_json(ctx);

        if (choice->reason == ABI_LENGTH) {
            ngx_http_moe_text_lit(out, ",\"finish_reason\":\"length\"}");

        } else {
            ngx_http_moe_text_lit(out, ",\"finish_reason\":\"stop\"}");
        }
    }

    ngx_http_moe_text_lit(out, "],\"usage\":");
    ngx_http_moe_stream_usage(ctx);
    ngx_http_moe_text_lit(out, "}\n");
}


/* Four arrays of the same length; offsets count characters of the text. */

static void
ngx_http_moe_completions_logprobs(ngx_http_moe_choice_t *choice,
    const ngx_http_moe_delta_t *delta)
{
    ngx_uint_t     i;
    const u_char  *p;

    p = delta->logprobs;

    for (i = 0; i < delta->n_logprobs; i++) {
        ngx_http_moe_completions_logprob(choice, &p, ABI_TOP_LOGPROBS_MAX);
    }
}


/* The text came before, as the first DELTA of each choice. */

static void
ngx_http_moe_completions_echo(ngx_http_moe_ctx_t *ctx, const u_char *logprobs)
{
    ngx_uint_t           i;
    const u_char        *p;
    struct abi_request  *abi;

    abi = &ctx->params.abi;

    if (!(abi->flags & ABI_FLAG_ECHO) || !(abi->flags & ABI_FLAG_LOGPROBS)) {
        return;
    }

    for (i = 0; i < abi->n_choices; i++) {
        p = logprobs;
        ngx_http_moe_completions_logprob(&ctx->choices[i], &p,
                                         abi->n_top_logprobs);
    }
}


/* One token, of whose alternatives n_top are told. */

static void
ngx_http_moe_completions_logprob(ngx_http_moe_choice_t *choice,
    const u_char **p, ngx_uint_t n_top)
{
    ngx_http_moe_logprob_t  lp;

    ngx_http_moe_event_logprob(p, &lp);

    if (choice->logprobs.last != choice->logprobs.start) {
        ngx_http_moe_text_lit(&choice->logprobs, ",");
        ngx_http_moe_text_lit(&choice->values, ",");
        ngx_http_moe_text_lit(&choice->tops, ",");
        ngx_http_moe_text_lit(&choice->offsets, ",");
    }

    ngx_http_moe_text_lit(&choice->logprobs, "\"");
    ngx_http_moe_text_json(&choice->logprobs, lp.token.data, lp.token.len);
    ngx_http_moe_text_lit(&choice->logprobs, "\"");

    /* The first token of an echoed prompt has none. */

    if (lp.logprob != lp.logprob) {
        ngx_http_moe_text_lit(&choice->values, "null");

    } else {
        ngx_http_moe_text_float(&choice->values, lp.logprob);
    }

    ngx_http_moe_text_uint(&choice->offsets, choice->n_chars);
    choice->n_chars += ngx_http_moe_completions_chars(&lp.token);

    ngx_http_moe_completions_tops(&choice->tops, p, lp.n_top, n_top);
}


/* { token: logprob, ... } */

static void
ngx_http_moe_completions_tops(ngx_http_moe_text_t *text, const u_char **p,
    ngx_uint_t n, ngx_uint_t n_top)
{
    ngx_uint_t               i;
    ngx_http_moe_logprob_t   lp;

    if (n == 0 || n_top == 0) {
        ngx_http_moe_text_lit(text, "null");
        return;
    }

    for (i = 0; i < n && i < n_top; i++) {
        ngx_http_moe_event_logprob(p, &lp);

        if (i == 0) {
            ngx_http_moe_text_lit(text, "{\"");

        } else {
            ngx_http_moe_text_lit(text, ",\"");
        }

        ngx_http_moe_text_json(text, lp.token.data, lp.token.len);
        ngx_http_moe_text_lit(text, "\":");
        ngx_http_moe_text_float(text, lp.logprob);
    }

    ngx_http_moe_text_lit(text, "}");
}


/* Writes the arrays, and starts them anew. */

static void
ngx_http_moe_completions_arrays(ngx_http_moe_text_t *out,
    ngx_http_moe_choice_t *choice)
{
    ngx_http_moe_text_lit(out, "{\"tokens\":[");
    ngx_http_moe_text_add(out, choice->logprobs.start,
                          ngx_http_moe_text_len(&choice->logprobs));
    ngx_http_moe_text_lit(out, "],\"token_logprobs\":[");
    ngx_http_moe_text_add(out, choice->values.start,
                          ngx_http_moe_text_len(&choice->values));
    ngx_http_moe_text_lit(out, "],\"top_logprobs\":[");
    ngx_http_moe_text_add(out, choice->tops.start,
                          ngx_http_moe_text_len(&choice->tops));
    ngx_http_moe_text_lit(out, "],\"text_offset\":[");
    ngx_http_moe_text_add(out, choice->offsets.start,
                          ngx_http_moe_text_len(&choice->offsets));
    ngx_http_moe_text_lit(out, "]}");

    choice->logprobs.last = choice->logprobs.start;
    choice->values.last = choice->values.start;
    choice->tops.last = choice->tops.start;
    choice->offsets.last = choice->offsets.start;
}


/* A character begins with each byte that does not continue one. */

static ngx_uint_t
ngx_http_moe_completions_chars(const ngx_str_t *s)
{
    size_t      i;
    ngx_uint_t  n;

    for (n = 0, i = 0; i < s->len; i++) {
        n += ((s->data[i] & 0xc0) != 0x80);
    }

    return n;
}

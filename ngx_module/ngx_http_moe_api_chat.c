/*
 * ngx_http_moe_api_chat.c - OpenAI's chat completions.
 *
 * In: a JSON body; typed events.  Out: the template's variables as canonical
 * JSON; chat.completion objects, whole or in chunks.
 *
 * A request can bring messages, tools and arguments for the template, but
 * never a template.  Must not know channels or sockets.
 */

#include "ngx_http_moe_module.h"


static ngx_int_t ngx_http_moe_chat_parse(ngx_http_moe_ctx_t *ctx,
    json_t *body);
static ngx_int_t ngx_http_moe_chat_messages(ngx_http_moe_ctx_t *ctx,
    json_t *body, json_t *vars);
static ngx_int_t ngx_http_moe_chat_message(ngx_http_moe_ctx_t *ctx, size_t i,
    json_t *in, json_t *out);
static ngx_int_t ngx_http_moe_chat_content(ngx_http_moe_ctx_t *ctx, size_t i,
    json_t *content, json_t *out);
static ngx_int_t ngx_http_moe_chat_tools(ngx_http_moe_ctx_t *ctx, json_t *body,
    json_t *vars);
static ngx_int_t ngx_http_moe_chat_tool_choice(ngx_http_moe_ctx_t *ctx,
    json_t *body, ngx_uint_t *none);
static ngx_int_t ngx_http_moe_chat_kwargs(ngx_http_moe_ctx_t *ctx,
    json_t *body, json_t *vars);
static ngx_int_t ngx_http_moe_chat_missing(ngx_http_moe_ctx_t *ctx,
    const char *param);
static ngx_int_t ngx_http_moe_chat_invalid(ngx_http_moe_ctx_t *ctx,
    const char *param, const char *expected, json_t *v);

static void ngx_http_moe_chat_delta(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_delta_t *delta);
static void ngx_http_moe_chat_open(ngx_http_moe_ctx_t *ctx, ngx_uint_t choice);
static void ngx_http_moe_chat_finish(ngx_http_moe_ctx_t *ctx,
    ngx_uint_t choice);
static void ngx_http_moe_chat_whole(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_chat_logprobs(ngx_http_moe_text_t *text,
    const ngx_http_moe_delta_t *delta);
static void ngx_http_moe_chat_logprob(ngx_http_moe_text_t *text,
    const ngx_http_moe_logprob_t *lp);


const ngx_http_moe_api_t  ngx_http_moe_api_chat = {
    "chat.completion",
    "chat.completion.chunk",
    ngx_http_moe_chat_parse,
    ngx_http_moe_chat_delta,
    ngx_http_moe_chat_finish,
    ngx_http_moe_chat_whole,
    NULL,
    NGX_HTTP_MOE_CHATS
};


static const char  *ngx_http_moe_roles[] = {
    "system", "developer", "user", "assistant", "tool", NULL
};

/* Of a message, what goes to the template beside role and content. */

static const struct {
    const char  *name;
    json_type    type;
} ngx_http_moe_fields[] = {
    { "name", JSON_STRING },
    { "tool_calls", JSON_ARRAY },
    { "tool_call_id", JSON_STRING },
    { "reasoning_content", JSON_STRING },
    { NULL, JSON_NULL }
};


static ngx_int_t
ngx_http_moe_chat_parse(ngx_http_moe_ctx_t *ctx, json_t *body)
{
    json_t     *vars;
    ngx_int_t   rc;

    rc = ngx_http_moe_params_parse(ctx, body, NGX_HTTP_MOE_CHAT);
    if (rc != NGX_OK) {
        return rc;
    }

    vars = json_object();
    if (vars == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_moe_chat_messages(ctx, body, vars);

    if (rc == NGX_OK) {
        rc = ngx_http_moe_chat_tools(ctx, body, vars);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_chat_kwargs(ctx, body, vars);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_params_payload(ctx, ABI_CHAT, NULL, vars, 0);
    }

    json_decref(vars);

    return rc;
}


static ngx_int_t
ngx_http_moe_chat_missing(ngx_http_moe_ctx_t *ctx, const char *param)
{
    return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                              "missing_required_parameter", param,
                              "Missing required parameter: '%s'.", param);
}


static ngx_int_t
ngx_http_moe_chat_invalid(ngx_http_moe_ctx_t *ctx, const char *param,
    const char *expected, json_t *v)
{
    return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_type", param,
                              "Invalid type for '%s': expected %s, but got "
                              "%s instead.",
                              param, expected, ngx_http_moe_type_name(v));
}


static ngx_int_t
ngx_http_moe_chat_messages(ngx_http_moe_ctx_t *ctx, json_t *body, json_t *vars)
{
    size_t      i;
    json_t     *in, *list, *message;
    ngx_int_t   rc;

    in = json_object_get(body, "messages");

    if (in == NULL || json_is_null(in)) {
        return ngx_http_moe_chat_missing(ctx, "messages");
    }

    if (!json_is_array(in)) {
        return ngx_http_moe_chat_invalid(ctx, "messages", "an array of "
                                         "objects", in);
    }

    if (json_array_size(in) == 0) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                                  "empty_array", "messages",
                                  "Invalid 'messages': empty array. Expected "
                                  "an array with minimum length 1, but got an "
                                  "empty array instead.");
    }

    list = json_array();

    if (json_object_set_new(vars, "messages", list) != 0) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (i = 0; i < json_array_size(in); i++) {

        message = json_object();

        if (json_array_append_new(list, message) != 0) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        rc = ngx_http_moe_chat_message(ctx, i, json_array_get(in, i), message);

        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_chat_message(ngx_http_moe_ctx_t *ctx, size_t i, json_t *in,
    json_t *out)
{
    json_t      *role, *v;
    ngx_int_t    rc;
    ngx_uint_t   k;
    u_char       param[96];

    if (!json_is_object(in)) {
        ngx_sprintf(param, "messages[%uz]%Z", i);
        return ngx_http_moe_chat_invalid(ctx, (char *) param, "an object", in);
    }

    role = json_object_get(in, "role");
    ngx_sprintf(param, "messages[%uz].role%Z", i);

    if (role == NULL || json_is_null(role)) {
        return ngx_http_moe_chat_missing(ctx, (char *) param);
    }

    if (!json_is_string(role)) {
        return ngx_http_moe_chat_invalid(ctx, (char *) param, "a string",
                                         role);
    }

    for (k = 0; ngx_http_moe_roles[k]; k++) {
        if (ngx_strcmp(json_string_value(role), ngx_http_moe_roles[k]) == 0) {
            break;
        }
    }

    if (ngx_http_moe_roles[k] == NULL) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                   (char *) param, "Invalid value: '%s'. Supported values "
                   "are: 'system', 'developer', 'user', 'assistant' and "
                   "'tool'.", json_string_value(role));
    }

    if (json_object_set(out, "role", role) != 0) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    v = json_object_get(in, "content");

    if (v == NULL || json_is_null(v)) {

        if (ngx_strcmp(json_string_value(role), "assistant") != 0) {
            ngx_sprintf(param, "messages[%uz].content%Z", i);
            return ngx_http_moe_chat_missing(ctx, (char *) param);
        }

        if (json_object_set_new(out, "content", json_null()) != 0) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

    } else {
        rc = ngx_http_moe_chat_content(ctx, i, v, out);

        if (rc != NGX_OK) {
            return rc;
        }
    }

    for (k = 0; ngx_http_moe_fields[k].name; k++) {

        v = json_object_get(in, ngx_http_moe_fields[k].name);

        if (v == NULL || json_is_null(v)) {
            continue;
        }

        if (json_typeof(v) != ngx_http_moe_fields[k].type) {
            ngx_sprintf(param, "messages[%uz].%s%Z", i,
                        ngx_http_moe_fields[k].name);
            return ngx_http_moe_chat_invalid(ctx, (char *) param,
                       ngx_http_moe_fields[k].type == JSON_STRING
                           ? "a string" : "an array", v);
        }

        if (json_object_set(out, ngx_http_moe_fields[k].name, v) != 0) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    return NGX_OK;
}


/* content := string | array of { "type": "text", "text": string } */

static ngx_int_t
ngx_http_moe_chat_content(ngx_http_moe_ctx_t *ctx, size_t i, json_t *content,
    json_t *out)
{
    size_t                j;
    json_t               *part, *type, *text;
    ngx_http_moe_text_t   all;
    u_char                param[96];

    if (json_is_string(content)) {
        return json_object_set(out, "content", content) == 0
               ? NGX_OK : NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_sprintf(param, "messages[%uz].content%Z", i);

    if (!json_is_array(content)) {
        return ngx_http_moe_chat_invalid(ctx, (char *) param,
                                         "a string or an array of objects",
                                         content);
    }

    ngx_memzero(&all, sizeof(ngx_http_moe_text_t));
    all.pool = ctx->request->pool;

    for (j = 0; j < json_array_size(content); j++) {

        part = json_array_get(content, j);
        type = json_object_get(part, "type");
        text = json_object_get(part, "text");

        ngx_sprintf(param, "messages[%uz].content[%uz].type%Z", i, j);

        if (!json_is_string(type)) {
            return ngx_http_moe_chat_missing(ctx, (char *) param);
        }

        if (ngx_strcmp(json_string_value(type), "text") != 0) {
            return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                       "invalid_value", (char *) param,
                       "Invalid value: '%s'. Supported values are: 'text'.",
                       json_string_value(type));
        }

        if (!json_is_string(text)) {
            ngx_sprintf(param, "messages[%uz].content[%uz].text%Z", i, j);
            return ngx_http_moe_chat_missing(ctx, (char *) param);
        }

        ngx_http_moe_text_add(&all, json_string_value(text),
                              json_string_length(text));
    }

    if (all.failed
        || json_object_set_new(out, "content",
               json_stringn_nocheck(all.start ? (char *) all.start : "",
                                    ngx_http_moe_text_len(&all))) != 0)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (all.start) {
        (void) ngx_pfree(all.pool, all.start);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_chat_tools(ngx_http_moe_ctx_t *ctx, json_t *body, json_t *vars)
{
    size_t        i;
    json_t       *list;
    ngx_int_t     rc;
    ngx_uint_t    k, none;
    const char   *name;

    static const char  *lists[] = { "tools", "documents" };

    none = 0;

    rc = ngx_http_moe_chat_tool_choice(ctx, body, &none);

    if (rc != NGX_OK) {
        return rc;
    }

    for (k = none; k < 2; k++) {

        name = lists[k];
        list = json_object_get(body, name);

        if (list == NULL || json_is_null(list)
            || (json_is_array(list) && json_array_size(list) == 0))
        {
            continue;
        }

        if (!json_is_array(list)) {
            return ngx_http_moe_chat_invalid(ctx, name, "an array of objects",
                                             list);
        }

        for (i = 0; i < json_array_size(list); i++) {
            if (!json_is_object(json_array_get(list, i))) {
                return ngx_http_moe_chat_invalid(ctx, name,
                                                 "an array of objects",
                                                 json_array_get(list, i));
            }
        }

        if (json_object_set(vars, name, list) != 0) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    return NGX_OK;
}


/* What the engine cannot enforce yet is refused rather than ignored. */

static ngx_int_t
ngx_http_moe_chat_tool_choice(ngx_http_moe_ctx_t *ctx, json_t *body,
    ngx_uint_t *none)
{
    json_t      *choice;
    const char  *s;

    choice = json_object_get(body, "tool_choice");

    if (choice == NULL || json_is_null(choice)) {
        return NGX_OK;
    }

    if (json_is_string(choice)) {
        s = json_string_value(choice);

        if (ngx_strcmp(s, "none") == 0) {
            *none = 1;
            return NGX_OK;
        }

        if (ngx_strcmp(s, "auto") == 0) {
            return NGX_OK;
        }
    }

    return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "unsupported_value",
                              "tool_choice",
                              "Unsupported value: 'tool_choice' supports "
                              "'none' and 'auto' with this engine.");
}


static ngx_int_t
ngx_http_moe_chat_kwargs(ngx_http_moe_ctx_t *ctx, json_t *body, json_t *vars)
{
    json_t      *v, *kwargs;
    ngx_uint_t   i;
    const char  *key;
    u_char       param[288];

    static const struct {
        const char  *name;
        ngx_uint_t   string;
    } args[] = { { "reasoning_effort", 1 }, { "enable_thinking", 0 } };

    static const char  *reserved[] = {
        "chat_template", "messages", "tools", "documents"
    };

    for (i = 0; i < 2; i++) {

        v = json_object_get(body, args[i].name);

        if (v == NULL || json_is_null(v)) {
            continue;
        }

        if (args[i].string ? !json_is_string(v) : !json_is_boolean(v)) {
            return ngx_http_moe_chat_invalid(ctx, args[i].name,
                                             args[i].string ? "a string"
                                                            : "a boolean", v);
        }

        if (json_object_set(vars, args[i].name, v) != 0) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    kwargs = json_object_get(body, "chat_template_kwargs");

    if (kwargs == NULL || json_is_null(kwargs)) {
        return NGX_OK;
    }

    if (!json_is_object(kwargs)) {
        return ngx_http_moe_chat_invalid(ctx, "chat_template_kwargs",
                                         "an object", kwargs);
    }

    json_object_foreach(kwargs, key, v) {

        for (i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++) {

            if (ngx_strcmp(key, reserved[i]) == 0) {
                ngx_sprintf(param, "chat_template_kwargs.%s%Z", reserved[i]);

                return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                           "unsupported_parameter", (char *) param,
                           "Unsupported parameter: '%s' is not supported.",
                           param);
            }
        }

        if (json_object_set(vars, key, v) != 0) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    return NGX_OK;
}


static void
ngx_http_moe_chat_delta(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_delta_t *delta)
{
    ngx_uint_t              reasoning;
    ngx_http_moe_text_t    *out;
    ngx_http_moe_choice_t  *choice;

    choice = &ctx->choices[delta->choice];
    reasoning = (delta->channel == ABI_REASONING);

    if (!ctx->params.stream) {
        ngx_http_moe_text_json(reasoning ? &choice->reasoning
                                         : &choice->content,
                               delta->text.data, delta->text.len);
        ngx_http_moe_chat_logprobs(&choice->logprobs, delta);
        return;
    }

    if (delta->text.len == 0 && delta->n_logprobs == 0) {
        return;
    }

    ngx_http_moe_chat_open(ctx, delta->choice);

    out = &ctx->out;

    ngx_http_moe_stream_event(ctx);
    ngx_http_moe_text_lit(out, "{\"index\":");
    ngx_http_moe_text_uint(out, delta->choice);

    if (reasoning) {
        ngx_http_moe_text_lit(out, ",\"delta\":{\"reasoning_content\":\"");

    } else {
        ngx_http_moe_text_lit(out, ",\"delta\":{\"content\":\"");
    }

    ngx_http_moe_text_json(out, delta->text.data, delta->text.len);

    if (delta->n_logprobs) {
        ngx_http_moe_text_lit(out, "\"},\"logprobs\":{\"content\":[");
        ngx_http_moe_chat_logprobs(out, delta);
        ngx_http_moe_text_lit(out, "],\"refusal\":null},"
                                   "\"finish_reason\":null");

    } else {
        ngx_http_moe_text_lit(out, "\"},\"logprobs\":null,"
                                   "\"finish_reason\":null");
    }

    ngx_http_moe_text_add(out, ctx->suffix.data, ctx->suffix.len);
}


/* The first chunk of a choice tells the role, right before its first text. */

static void
ngx_http_moe_chat_open(ngx_http_moe_ctx_t *ctx, ngx_uint_t choice)
{
    ngx_http_moe_text_t  *out;

    if (ctx->choices[choice].opened) {
        return;
    }

    ctx->choices[choice].opened = 1;

    out = &ctx->out;

    ngx_http_moe_stream_event(ctx);
    ngx_http_moe_text_lit(out, "{\"index\":");
    ngx_http_moe_text_uint(out, choice);
    ngx_http_moe_text_lit(out, ",\"delta\":{\"role\":\"assistant\","
                               "\"content\":\"\"},\"logprobs\":null,"
                               "\"finish_reason\":null");
    ngx_http_moe_text_add(out, ctx->suffix.data, ctx->suffix.len);
}


static void
ngx_http_moe_chat_finish(ngx_http_moe_ctx_t *ctx, ngx_uint_t choice)
{
    ngx_http_moe_text_t  *out;

    if (!ctx->params.stream) {
        return;
    }

    ngx_http_moe_chat_open(ctx, choice);

    out = &ctx->out;

    ngx_http_moe_stream_event(ctx);
    ngx_http_moe_text_lit(out, "{\"index\":");
    ngx_http_moe_text_uint(out, choice);

    if (ctx->choices[choice].reason == ABI_LENGTH) {
        ngx_http_moe_text_lit(out, ",\"delta\":{},\"logprobs\":null,"
                                   "\"finish_reason\":\"length\"");

    } else {
        ngx_http_moe_text_lit(out, ",\"delta\":{},\"logprobs\":null,"
                                   "\"finish_reason\":\"stop\"");
    }

    ngx_http_moe_text_add(out, ctx->suffix.data, ctx->suffix.len);
}


static void
ngx_http_moe_chat_whole(ngx_http_moe_ctx_t *ctx)
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

        ngx_http_moe_text_lit(out, "{\"index\":");
        ngx_http_moe_text_uint(out, i);
        ngx_http_moe_text_lit(out, ",\"message\":{\"role\":\"assistant\","
                                   "\"content\":\"");
        ngx_http_moe_text_add(out, choice->content.start,
                              ngx_http_moe_text_len(&choice->content));

        if (choice->reasoning.start) {
            ngx_http_moe_text_lit(out, "\",\"reasoning_content\":\"");
            ngx_http_moe_text_add(out, choice->reasoning.start,
                                  ngx_http_moe_text_len(&choice->reasoning));
        }

        ngx_http_moe_text_lit(out, "\",\"refusal\":null},\"logprobs\":");

        if (ctx->params.abi.flags & ABI_FLAG_LOGPROBS) {
            ngx_http_moe_text_lit(out, "{\"content\":[");
            ngx_http_moe_text_add(out, choice->logprobs.start,
                                  ngx_http_moe_text_len(&choice->logprobs));
            ngx_http_moe_text_lit(out, "],\"refusal\":null}");

        } else {
            ngx_http_moe_text_lit(out, "null");
        }

        if (choice->reason == ABI_LENGTH) {
            ngx_http_moe_text_lit(out, ",\"finish_reason\":\"length\"}");

        } else {
            ngx_http_moe_text_lit(out, ",\"finish_reason\":\"stop\"}");
        }
    }

    ngx_http_moe_text_lit(out, "],\"usage\":");
    ngx_http_moe_stream_usage(ctx);
    ngx_http_moe_prompt_json(ctx);
    ngx_http_moe_text_lit(out, "}\n");
}


/* { token, logprob, bytes, top_logprobs }, ... */

static void
ngx_http_moe_chat_logprobs(ngx_http_moe_text_t *text,
    const ngx_http_moe_delta_t *delta)
{
    ngx_uint_t              i, k, n_top;
    const u_char           *p;
    ngx_http_moe_logprob_t  lp;

    p = delta->logprobs;

    for (i = 0; i < delta->n_logprobs; i++) {

        ngx_http_moe_event_logprob(&p, &lp);

        if (text->last > text->start && text->last[-1] == '}') {
            ngx_http_moe_text_lit(text, ",");
        }

        ngx_http_moe_chat_logprob(text, &lp);
        ngx_http_moe_text_lit(text, ",\"top_logprobs\":[");

        n_top = lp.n_top;

        for (k = 0; k < n_top; k++) {
            ngx_http_moe_event_logprob(&p, &lp);

            if (k) {
                ngx_http_moe_text_lit(text, ",");
            }

            ngx_http_moe_chat_logprob(text, &lp);
            ngx_http_moe_text_lit(text, "}");
        }

        ngx_http_moe_text_lit(text, "]}");
    }
}


static void
ngx_http_moe_chat_logprob(ngx_http_moe_text_t *text,
    const ngx_http_moe_logprob_t *lp)
{
    size_t  i;

    ngx_http_moe_text_lit(text, "{\"token\":\"");
    ngx_http_moe_text_json(text, lp->token.data, lp->token.len);
    ngx_http_moe_text_lit(text, "\",\"logprob\":");
    ngx_http_moe_text_float(text, lp->logprob);
    ngx_http_moe_text_lit(text, ",\"bytes\":[");

    for (i = 0; i < lp->token.len; i++) {

        if (i) {
            ngx_http_moe_text_lit(text, ",");
        }

        ngx_http_moe_text_uint(text, lp->token.data[i]);
    }

    ngx_http_moe_text_lit(text, "]");
}

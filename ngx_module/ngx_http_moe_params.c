/*
 * ngx_http_moe_params.c - one table of all request parameters, and the payload
 * that carries them.
 *
 * In: the request's JSON object.  Out: ngx_http_moe_params_t, filled, or 400
 * with an error that names the parameter; then a struct abi_request with its
 * tail, as abi.h lays it out.
 *
 * null is as good as absent; what is not in the table is ignored, as OpenAI
 * does.  Must not know messages, prompts or channels.
 */

#include "ngx_http_moe_module.h"

#include <sys/random.h>


#define NGX_HTTP_MOE_STOP_MAX  1024     /* bytes of a stop string */

#define NGX_HTTP_MOE_BOTH      (NGX_HTTP_MOE_CHAT|NGX_HTTP_MOE_COMPLETIONS)

#define ngx_http_moe_align(n, a)                                              \
    (((n) + (size_t) ((a) - 1)) & ~(size_t) ((a) - 1))


typedef enum {
    NGX_HTTP_MOE_BOOL,                          /* uint32_t */
    NGX_HTTP_MOE_FLAG,                          /* bit of abi.flags */
    NGX_HTTP_MOE_UINT,                          /* uint32_t */
    NGX_HTTP_MOE_INT,                           /* int32_t */
    NGX_HTTP_MOE_INT64,                         /* uint64_t, two's complement */
    NGX_HTTP_MOE_FLOAT,                         /* float */
    NGX_HTTP_MOE_OTHER                          /* handler */
} ngx_http_moe_type_e;

typedef struct ngx_http_moe_param_s  ngx_http_moe_param_t;

struct ngx_http_moe_param_s {
    const char            *name;
    ngx_uint_t             apis;
    ngx_http_moe_type_e    type;
    double                 min;
    double                 max;
    double                 value;               /* unless given */
    size_t                 offset;              /* in ngx_http_moe_params_t */
    uint32_t               bit;                 /* of abi.given or abi.flags */
    ngx_int_t            (*handler)(ngx_http_moe_ctx_t *ctx, json_t *v,
                               const ngx_http_moe_param_t *param);
};


static ngx_int_t ngx_http_moe_param_set(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_integer(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_number(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static void ngx_http_moe_param_store(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_param_t *param, double num, int64_t n);
static ngx_int_t ngx_http_moe_param_type(ngx_http_moe_ctx_t *ctx, json_t *v,
    const char *name, const char *expected);

static ngx_int_t ngx_http_moe_param_model(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_stream_options(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_stop(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_stop_add(ngx_http_moe_ctx_t *ctx,
    json_t *v);
static ngx_int_t ngx_http_moe_param_logit_bias(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_logprobs(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_prompt_logprobs(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_response_format(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static ngx_int_t ngx_http_moe_param_refused(ngx_http_moe_ctx_t *ctx,
    json_t *v, const ngx_http_moe_param_t *param);
static void ngx_http_moe_params_prompt(ngx_http_moe_params_t *params);
static ngx_int_t ngx_http_moe_params_agree(ngx_http_moe_ctx_t *ctx,
    json_t *body, ngx_uint_t api);


#define ngx_http_moe_at(field)  offsetof(ngx_http_moe_params_t, field)
#define ngx_http_moe_abi(field)                                               \
    (offsetof(ngx_http_moe_params_t, abi)                                     \
     + offsetof(struct abi_request, field))

#define NGX_HTTP_MOE_CUSTOM(name, apis, handler)                              \
    { name, apis, NGX_HTTP_MOE_OTHER, 0, 0, 0, 0, 0, handler }

/*
 * Where two rows have one target, the later one wins: max_completion_tokens
 * is the newer name of max_tokens.  Completions end after 16 tokens unless
 * told otherwise, as OpenAI's do.
 */

static const ngx_http_moe_param_t  ngx_http_moe_params[] = {

    NGX_HTTP_MOE_CUSTOM("model", NGX_HTTP_MOE_BOTH, ngx_http_moe_param_model),

    { "stream", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_BOOL, 0, 1, 0,
      ngx_http_moe_at(stream), 0, NULL },

    NGX_HTTP_MOE_CUSTOM("stream_options", NGX_HTTP_MOE_BOTH,
                        ngx_http_moe_param_stream_options),

    { "n", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_UINT, 1, ABI_CHOICES_MAX, 1,
      ngx_http_moe_abi(n_choices), 0, NULL },

    { "best_of", NGX_HTTP_MOE_COMPLETIONS, NGX_HTTP_MOE_UINT, 1,
      ABI_CHOICES_MAX, 0, ngx_http_moe_at(best_of), 0, NULL },

    { "max_tokens", NGX_HTTP_MOE_CHAT, NGX_HTTP_MOE_UINT, 1, INT32_MAX, 16,
      ngx_http_moe_abi(max_tokens), ABI_GIVEN_MAX_TOKENS, NULL },

    { "max_tokens", NGX_HTTP_MOE_COMPLETIONS, NGX_HTTP_MOE_UINT, 0, INT32_MAX,
      16, ngx_http_moe_abi(max_tokens), ABI_GIVEN_MAX_TOKENS, NULL },

    { "max_completion_tokens", NGX_HTTP_MOE_CHAT, NGX_HTTP_MOE_UINT, 1,
      INT32_MAX, 16, ngx_http_moe_abi(max_tokens), ABI_GIVEN_MAX_TOKENS,
      NULL },

    { "temperature", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_FLOAT, 0, 2, 1,
      ngx_http_moe_abi(temperature), ABI_GIVEN_TEMPERATURE, NULL },

    { "top_p", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_FLOAT, 0, 1, 1,
      ngx_http_moe_abi(top_p), ABI_GIVEN_TOP_P, NULL },

    { "top_k", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_INT, -1, INT32_MAX, 0,
      ngx_http_moe_abi(top_k), ABI_GIVEN_TOP_K, NULL },

    { "min_p", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_FLOAT, 0, 1, 0,
      ngx_http_moe_abi(min_p), ABI_GIVEN_MIN_P, NULL },

    { "seed", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_INT64, 0, 0, 0,
      ngx_http_moe_abi(seed), ABI_GIVEN_SEED, NULL },

    { "presence_penalty", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_FLOAT, -2, 2, 0,
      ngx_http_moe_abi(presence), 0, NULL },

    { "frequency_penalty", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_FLOAT, -2, 2, 0,
      ngx_http_moe_abi(frequency), 0, NULL },

    { "repetition_penalty", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_FLOAT, 0.01, 10, 1,
      ngx_http_moe_abi(repetition), ABI_GIVEN_REPETITION, NULL },

    { "logprobs", NGX_HTTP_MOE_CHAT, NGX_HTTP_MOE_FLAG, 0, 1, 0, 0,
      ABI_FLAG_LOGPROBS, NULL },

    { "top_logprobs", NGX_HTTP_MOE_CHAT, NGX_HTTP_MOE_UINT, 0,
      ABI_TOP_LOGPROBS_MAX, 0, ngx_http_moe_abi(n_top_logprobs), 0, NULL },

    { "logprobs", NGX_HTTP_MOE_COMPLETIONS, NGX_HTTP_MOE_OTHER, 0,
      ABI_TOP_LOGPROBS_MAX, 0, ngx_http_moe_abi(n_top_logprobs), 0,
      ngx_http_moe_param_logprobs },

    { "echo", NGX_HTTP_MOE_COMPLETIONS, NGX_HTTP_MOE_FLAG, 0, 1, 0, 0,
      ABI_FLAG_ECHO, NULL },

    { "prompt_logprobs", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_OTHER, 0,
      ABI_TOP_LOGPROBS_MAX, 0, ngx_http_moe_at(prompt_logprobs), 0,
      ngx_http_moe_param_prompt_logprobs },

    { "ignore_eos", NGX_HTTP_MOE_BOTH, NGX_HTTP_MOE_FLAG, 0, 1, 0, 0,
      ABI_FLAG_IGNORE_EOS, NULL },

    NGX_HTTP_MOE_CUSTOM("stop", NGX_HTTP_MOE_BOTH, ngx_http_moe_param_stop),

    NGX_HTTP_MOE_CUSTOM("logit_bias", NGX_HTTP_MOE_BOTH,
                        ngx_http_moe_param_logit_bias),

    NGX_HTTP_MOE_CUSTOM("response_format", NGX_HTTP_MOE_BOTH,
                        ngx_http_moe_param_response_format),

    NGX_HTTP_MOE_CUSTOM("suffix", NGX_HTTP_MOE_COMPLETIONS,
                        ngx_http_moe_param_refused),

    NGX_HTTP_MOE_CUSTOM("chat_template", NGX_HTTP_MOE_BOTH,
                        ngx_http_moe_param_refused),

    { NULL, 0, 0, 0, 0, 0, 0, 0, NULL }
};


const char *
ngx_http_moe_type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a decimal";
    case JSON_NULL:
        return "null";
    default:
        return "a boolean";
    }
}


ngx_int_t
ngx_http_moe_params_parse(ngx_http_moe_ctx_t *ctx, json_t *body,
    ngx_uint_t api)
{
    json_t                      *v;
    ngx_int_t                    rc;
    const ngx_http_moe_param_t  *param;

    for (param = ngx_http_moe_params; param->name; param++) {

        if (!(param->apis & api)) {
            continue;
        }

        if (param->type != NGX_HTTP_MOE_FLAG
            && param->type != NGX_HTTP_MOE_OTHER
            && !(ctx->params.abi.given & param->bit))
        {
            ngx_http_moe_param_store(ctx, param, param->value,
                                     (int64_t) param->value);
        }

        v = json_object_get(body, param->name);

        if (v == NULL || json_is_null(v)) {
            continue;
        }

        rc = ngx_http_moe_param_set(ctx, v, param);

        if (rc != NGX_OK) {
            return rc;
        }
    }

    return ngx_http_moe_params_agree(ctx, body, api);
}


static ngx_int_t
ngx_http_moe_param_set(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    ngx_int_t  rc;

    switch (param->type) {

    case NGX_HTTP_MOE_OTHER:
        return param->handler(ctx, v, param);

    case NGX_HTTP_MOE_BOOL:
    case NGX_HTTP_MOE_FLAG:

        if (!json_is_boolean(v)) {
            return ngx_http_moe_param_type(ctx, v, param->name, "a boolean");
        }

        if (param->type == NGX_HTTP_MOE_BOOL) {
            ngx_http_moe_param_store(ctx, param, 0, json_is_true(v));

        } else if (json_is_true(v)) {
            ctx->params.abi.flags |= param->bit;
        }

        return NGX_OK;

    case NGX_HTTP_MOE_FLOAT:
        rc = ngx_http_moe_param_number(ctx, v, param);
        break;

    default:
        rc = ngx_http_moe_param_integer(ctx, v, param);
    }

    if (rc == NGX_OK) {
        ctx->params.abi.given |= param->bit;
    }

    return rc;
}


static ngx_int_t
ngx_http_moe_param_integer(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    int64_t  n;

    if (!json_is_integer(v)) {
        return ngx_http_moe_param_type(ctx, v, param->name, "an integer");
    }

    n = json_integer_value(v);

    if (param->type != NGX_HTTP_MOE_INT64) {

        if (n < (int64_t) param->min) {
            return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                       "integer_below_min_value", param->name,
                       "Invalid '%s': integer below minimum value. Expected "
                       "a value >= %L, but got %L instead.",
                       param->name, (int64_t) param->min, n);
        }

        if (n > (int64_t) param->max) {
            return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                       "integer_above_max_value", param->name,
                       "Invalid '%s': integer above maximum value. Expected "
                       "a value <= %L, but got %L instead.",
                       param->name, (int64_t) param->max, n);
        }
    }

    ngx_http_moe_param_store(ctx, param, 0, n);

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_param_number(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    double  num;

    if (!json_is_number(v)) {
        return ngx_http_moe_param_type(ctx, v, param->name, "a decimal");
    }

    num = json_number_value(v);

    if (!(num >= param->min)) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                   "decimal_below_min_value", param->name,
                   "Invalid '%s': decimal below minimum value. Expected "
                   "a value >= %.2f.", param->name, param->min);
    }

    if (!(num <= param->max)) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                   "decimal_above_max_value", param->name,
                   "Invalid '%s': decimal above maximum value. Expected "
                   "a value <= %.2f.", param->name, param->max);
    }

    ngx_http_moe_param_store(ctx, param, num, 0);

    return NGX_OK;
}


static void
ngx_http_moe_param_store(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_param_t *param, double num, int64_t n)
{
    void  *p;

    p = (u_char *) &ctx->params + param->offset;

    switch (param->type) {

    case NGX_HTTP_MOE_BOOL:
    case NGX_HTTP_MOE_UINT:
        *(uint32_t *) p = (uint32_t) n;
        break;

    case NGX_HTTP_MOE_INT:
        *(int32_t *) p = (int32_t) n;
        break;

    case NGX_HTTP_MOE_INT64:
        *(uint64_t *) p = (uint64_t) n;
        break;

    case NGX_HTTP_MOE_FLOAT:
        *(float *) p = (float) num;
        break;

    default:
        break;
    }
}


static ngx_int_t
ngx_http_moe_param_type(ngx_http_moe_ctx_t *ctx, json_t *v, const char *name,
    const char *expected)
{
    return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_type", name,
                              "Invalid type for '%s': expected %s, but got %s "
                              "instead.",
                              name, expected, ngx_http_moe_type_name(v));
}


static ngx_int_t
ngx_http_moe_param_model(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    ngx_str_t  name;

    if (!json_is_string(v)) {
        return ngx_http_moe_param_type(ctx, v, param->name, "a string");
    }

    name.data = (u_char *) json_string_value(v);
    name.len = ngx_min(json_string_length(v), 2 * ABI_NAME_MAX);

    ctx->params.model.data = ngx_pstrdup(ctx->request->pool, &name);
    if (ctx->params.model.data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->params.model.len = name.len;

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_param_stream_options(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    json_t  *usage;

    if (!json_is_object(v)) {
        return ngx_http_moe_param_type(ctx, v, param->name, "an object");
    }

    if (!ctx->params.stream) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                   "invalid_value", param->name,
                   "The 'stream_options' parameter is only allowed when "
                   "'stream' is enabled.");
    }

    usage = json_object_get(v, "include_usage");

    if (usage == NULL || json_is_null(usage)) {
        return NGX_OK;
    }

    if (!json_is_boolean(usage)) {
        return ngx_http_moe_param_type(ctx, usage,
                                       "stream_options.include_usage",
                                       "a boolean");
    }

    ctx->params.include_usage = json_is_true(usage);

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_param_stop(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    size_t     i;
    ngx_int_t  rc;

    if (json_is_string(v)) {
        return ngx_http_moe_param_stop_add(ctx, v);
    }

    if (!json_is_array(v)) {
        return ngx_http_moe_param_type(ctx, v, param->name,
                                       "a string or an array of strings");
    }

    if (json_array_size(v) > ABI_STOPS_MAX) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                   "array_above_max_length", param->name,
                   "Invalid 'stop': array too long. Expected at most %d "
                   "elements, but got %uz instead.",
                   ABI_STOPS_MAX, json_array_size(v));
    }

    for (i = 0; i < json_array_size(v); i++) {
        rc = ngx_http_moe_param_stop_add(ctx, json_array_get(v, i));

        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_param_stop_add(ngx_http_moe_ctx_t *ctx, json_t *v)
{
    ngx_str_t  *stop;

    if (!json_is_string(v)) {
        return ngx_http_moe_param_type(ctx, v, "stop",
                                       "a string or an array of strings");
    }

    if (json_string_length(v) == 0
        || json_string_length(v) > NGX_HTTP_MOE_STOP_MAX)
    {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                   "stop", "Invalid 'stop': expected strings of 1 to %d "
                   "bytes, but got one of %uz.",
                   NGX_HTTP_MOE_STOP_MAX, json_string_length(v));
    }

    /* The string stays the JSON's until the payload is made. */

    stop = &ctx->params.stops[ctx->params.abi.n_stops++];
    stop->data = (u_char *) json_string_value(v);
    stop->len = json_string_length(v);

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_param_logit_bias(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    double            num;
    json_t           *value;
    ngx_int_t         id;
    const char       *key;
    struct abi_bias  *bias;

    if (!json_is_object(v)) {
        return ngx_http_moe_param_type(ctx, v, param->name, "an object");
    }

    if (json_object_size(v) > ABI_BIASES_MAX) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                   "invalid_value", param->name,
                   "Invalid 'logit_bias': expected at most %d tokens, but got "
                   "%uz instead.", ABI_BIASES_MAX, json_object_size(v));
    }

    ctx->params.biases = ngx_palloc(ctx->request->pool,
                                    json_object_size(v)
                                    * sizeof(struct abi_bias));
    if (ctx->params.biases == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    json_object_foreach(v, key, value) {

        id = ngx_atoi((u_char *) key, ngx_strlen(key));

        if (id == NGX_ERROR || id > INT32_MAX) {
            return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                       "invalid_value", param->name,
                       "Invalid key in 'logit_bias': '%s' is not the id of a "
                       "token.", key);
        }

        num = json_number_value(value);

        if (!json_is_number(value) || !(num >= -100 && num <= 100)) {
            return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                       "invalid_value", param->name,
                       "Invalid value in 'logit_bias': expected a number from "
                       "-100 to 100 for token %i.", id);
        }

        bias = &ctx->params.biases[ctx->params.abi.n_biases++];
        bias->token = (uint32_t) id;
        bias->bias = (float) num;
    }

    return NGX_OK;
}


/* A number, of a parameter that says more by being there. */

static ngx_int_t
ngx_http_moe_param_count(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    ngx_http_moe_param_t  number;

    number = *param;
    number.type = NGX_HTTP_MOE_UINT;

    return ngx_http_moe_param_integer(ctx, v, &number);
}


/* Of completions: how many, and thereby that. */

static ngx_int_t
ngx_http_moe_param_logprobs(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    ngx_int_t  rc;

    rc = ngx_http_moe_param_count(ctx, v, param);

    if (rc == NGX_OK) {
        ctx->params.abi.flags |= ABI_FLAG_LOGPROBS;
    }

    return rc;
}


/* vLLM's: how many beside each token of the prompt; kept with one added. */

static ngx_int_t
ngx_http_moe_param_prompt_logprobs(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    ngx_int_t  rc;

    rc = ngx_http_moe_param_count(ctx, v, param);

    if (rc == NGX_OK) {
        ctx->params.prompt_logprobs++;
    }

    return rc;
}


static ngx_int_t
ngx_http_moe_param_response_format(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    json_t  *type;

    if (!json_is_object(v)) {
        return ngx_http_moe_param_type(ctx, v, param->name, "an object");
    }

    type = json_object_get(v, "type");

    if (!json_is_string(type)) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                   "missing_required_parameter", "response_format.type",
                   "Missing required parameter: 'response_format.type'.");
    }

    if (ngx_strcmp(json_string_value(type), "text") != 0) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                   "unsupported_value", "response_format",
                   "Unsupported value: 'response_format.type' does not "
                   "support '%s' with this engine. Supported values are: "
                   "'text'.", json_string_value(type));
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_param_refused(ngx_http_moe_ctx_t *ctx, json_t *v,
    const ngx_http_moe_param_t *param)
{
    return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                              "unsupported_parameter", param->name,
                              "Unsupported parameter: '%s' is not supported.",
                              param->name);
}


/* Both an echo with logprobs and prompt_logprobs want those of the prompt. */

static void
ngx_http_moe_params_prompt(ngx_http_moe_params_t *params)
{
    struct abi_request  *abi;

    abi = &params->abi;

    if (params->prompt_logprobs) {
        abi->flags |= ABI_FLAG_PROMPT_LOGPROBS;
        abi->n_prompt_top = params->prompt_logprobs - 1;
    }

    if ((abi->flags & ABI_FLAG_ECHO) && (abi->flags & ABI_FLAG_LOGPROBS)) {
        abi->flags |= ABI_FLAG_PROMPT_LOGPROBS;
        abi->n_prompt_top = ngx_max(abi->n_prompt_top, abi->n_top_logprobs);
    }
}


/* What one parameter demands of another. */

static ngx_int_t
ngx_http_moe_params_agree(ngx_http_moe_ctx_t *ctx, json_t *body,
    ngx_uint_t api)
{
    struct abi_request     *abi;
    ngx_http_moe_params_t  *params;

    params = &ctx->params;
    abi = &params->abi;

    if (abi->n_top_logprobs && !(abi->flags & ABI_FLAG_LOGPROBS)) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                                  "top_logprobs", "The 'top_logprobs' "
                                  "parameter is only allowed when 'logprobs' "
                                  "is enabled.");
    }

    if (params->prompt_logprobs && params->stream) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                                  "prompt_logprobs", "The 'prompt_logprobs' "
                                  "parameter is not allowed when 'stream' is "
                                  "enabled.");
    }

    if (api == NGX_HTTP_MOE_COMPLETIONS && abi->max_tokens == 0
        && !(abi->flags & ABI_FLAG_ECHO))
    {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                                  "max_tokens", "The 'max_tokens' parameter "
                                  "may only be 0 when 'echo' is enabled.");
    }

    ngx_http_moe_params_prompt(params);

    if (params->best_of && params->best_of != abi->n_choices) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST,
                                  "unsupported_value", "best_of",
                                  "Unsupported value: 'best_of' must be equal "
                                  "to 'n'.");
    }

    if (api == NGX_HTTP_MOE_COMPLETIONS) {
        abi->given |= ABI_GIVEN_MAX_TOKENS;
    }

    /* OpenAI takes 0, which leaves the likeliest token. */

    if (abi->top_p < 1e-6f) {
        abi->top_p = 1e-6f;
    }

    return NGX_OK;
}


/* The body is `json`, dumped, or else n bytes of `text`. */

ngx_int_t
ngx_http_moe_params_payload(ngx_http_moe_ctx_t *ctx, ngx_uint_t kind,
    const void *text, json_t *json, size_t n)
{
    size_t               size;
    u_char              *p;
    uint32_t             i, len;
    struct abi_request  *abi;

    abi = &ctx->params.abi;

    if (json) {
        n = json_dumpb(json, NULL, 0, JSON_COMPACT);
        if (n == 0) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    size = sizeof(struct abi_request) + ngx_http_moe_align(n, 8)
           + abi->n_biases * sizeof(struct abi_bias);

    for (i = 0; i < abi->n_stops; i++) {
        size += sizeof(uint32_t) + ngx_http_moe_align(ctx->params.stops[i].len,
                                                      4);
    }

    size += ngx_http_moe_align(ctx->params.salt.len, 4);

    if (size > ABI_REQUEST_MAX) {
        return ngx_http_moe_error(ctx, NGX_HTTP_REQUEST_ENTITY_TOO_LARGE,
                                  "request_too_large", NULL,
                                  "The request is too large: %uz bytes, at "
                                  "most %ui.",
                                  size, (ngx_uint_t) ABI_REQUEST_MAX);
    }

    ctx->payload = ngx_pcalloc(ctx->request->pool, size);
    if (ctx->payload == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->n_payload = size;
    ctx->n_base = size;

    /* The rest of an answer may come from another engine: of one mind. */

    if (!(abi->given & ABI_GIVEN_SEED)) {

        if (getrandom(&abi->seed, sizeof(abi->seed), GRND_NONBLOCK)
            != sizeof(abi->seed))
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        abi->given |= ABI_GIVEN_SEED;
    }

    abi->n_bytes = (uint32_t) size;
    abi->kind = (uint32_t) kind;
    abi->n_body = (uint32_t) n;
    abi->n_salt = (uint32_t) ctx->params.salt.len;

    p = ngx_cpymem(ctx->payload, abi, sizeof(struct abi_request));

    if (json) {
        if (json_dumpb(json, (char *) p, n, JSON_COMPACT) != n) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

    } else if (n) {
        ngx_memcpy(p, text, n);
    }

    p += ngx_http_moe_align(n, 8);

    if (abi->n_biases) {
        p = ngx_cpymem(p, ctx->params.biases,
                       abi->n_biases * sizeof(struct abi_bias));
    }

    for (i = 0; i < abi->n_stops; i++) {
        len = (uint32_t) ctx->params.stops[i].len;

        p = ngx_cpymem(p, &len, sizeof(uint32_t));
        ngx_memcpy(p, ctx->params.stops[i].data, len);
        p += ngx_http_moe_align(len, 4);
    }

    if (abi->n_salt) {
        ngx_memcpy(p, ctx->params.salt.data, abi->n_salt);
    }

    return NGX_OK;
}

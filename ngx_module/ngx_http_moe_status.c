/*
 * ngx_http_moe_status.c - what is known without asking: models and health.
 *
 * In: the channel of this worker.  Out: JSON.  Nothing here waits.
 */

#include "ngx_http_moe_module.h"


static void ngx_http_moe_model_json(ngx_http_moe_text_t *text,
    ngx_http_moe_channel_t *ch);
static void ngx_http_moe_health_json(ngx_http_moe_text_t *text,
    ngx_http_moe_engine_t *engine);
static uint64_t ngx_http_moe_health_counter(ngx_http_moe_engine_t *engine,
    size_t offset);
static ngx_uint_t ngx_http_moe_id_known(ngx_http_moe_channel_t *ch,
    ngx_str_t *id);


ngx_int_t
ngx_http_moe_models_handler(ngx_http_request_t *r,
    ngx_http_moe_engine_t *engine, ngx_str_t *id)
{
    ngx_int_t                rc;
    ngx_http_moe_ctx_t      *ctx;
    ngx_http_moe_text_t      text;
    ngx_http_moe_channel_t  *ch;

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    ctx = ngx_http_moe_ctx_create(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->engine = engine;
    ch = ngx_http_moe_balance_any(engine);

    if (ch == NULL) {
        return ngx_http_moe_unavailable(ctx, "The engine is not running. "
                                             "Please retry shortly.");
    }

    ngx_memzero(&text, sizeof(ngx_http_moe_text_t));
    text.pool = r->pool;

    if (id->len == 0) {
        ngx_http_moe_text_lit(&text, "{\"object\":\"list\",\"data\":[");
        ngx_http_moe_model_json(&text, ch);
        ngx_http_moe_text_lit(&text, "]}\n");

    } else if (ngx_http_moe_id_known(ch, id)) {
        ngx_http_moe_model_json(&text, ch);
        ngx_http_moe_text_lit(&text, "\n");

    } else {
        return ngx_http_moe_error(ctx, NGX_HTTP_NOT_FOUND, "model_not_found",
                                  "model", "The model '%V' does not exist or "
                                  "you do not have access to it.", id);
    }

    return ngx_http_moe_text_send(r, NGX_HTTP_OK, "application/json", &text);
}


static ngx_uint_t
ngx_http_moe_id_known(ngx_http_moe_channel_t *ch, ngx_str_t *id)
{
    const char  *model;

    model = ch->welcome.model;

    return id->len == ngx_strlen(model)
           && ngx_memcmp(id->data, model, id->len) == 0;
}


static void
ngx_http_moe_model_json(ngx_http_moe_text_t *text, ngx_http_moe_channel_t *ch)
{
    struct abi_welcome  *w;

    w = &ch->welcome;

    ngx_http_moe_text_lit(text, "{\"id\":\"");
    ngx_http_moe_text_json(text, (u_char *) w->model, ngx_strlen(w->model));
    ngx_http_moe_text_lit(text, "\",\"object\":\"model\",\"created\":");
    ngx_http_moe_text_uint(text, w->created);
    ngx_http_moe_text_lit(text, ",\"owned_by\":\"");
    ngx_http_moe_text_json(text, (u_char *) w->owner, ngx_strlen(w->owner));
    ngx_http_moe_text_lit(text, "\",\"max_model_len\":");
    ngx_http_moe_text_uint(text, w->n_ctx_tok);
    ngx_http_moe_text_lit(text, "}");
}


ngx_int_t
ngx_http_moe_health_handler(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_uint_t                status;
    ngx_http_moe_text_t       text;
    ngx_http_moe_loc_conf_t  *mlcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    status = ngx_http_moe_balance_ready(mlcf->engine)
             ? NGX_HTTP_OK : NGX_HTTP_SERVICE_UNAVAILABLE;

    ngx_memzero(&text, sizeof(ngx_http_moe_text_t));
    text.pool = r->pool;

    ngx_http_moe_health_json(&text, mlcf->engine);

    return ngx_http_moe_text_send(r, status, "application/json", &text);
}


/* Sums over the engines of a group: of a word of their pages, and of what
 * this worker has counted. */

uint64_t
ngx_http_moe_health_word(ngx_http_moe_engine_t *engine, size_t offset)
{
    uint64_t              n;
    ngx_uint_t            i;
    const u_char         *page;
    ngx_http_moe_peer_t  *peer;

    peer = engine->peers.elts;
    n = 0;

    for (i = 0; i < engine->peers.nelts; i++) {

        if (peer[i].channel == NULL
            || peer[i].channel->state != NGX_HTTP_MOE_ATTACHED)
        {
            continue;
        }

        page = (const u_char *) peer[i].channel->peer.page;
        n += ring_word_get((const uint64_t *) (const void *) (page + offset));
    }

    return n;
}


static uint64_t
ngx_http_moe_health_counter(ngx_http_moe_engine_t *engine, size_t offset)
{
    uint64_t              n;
    ngx_uint_t            i;
    ngx_http_moe_peer_t  *peer;

    peer = engine->peers.elts;
    n = 0;

    for (i = 0; i < engine->peers.nelts; i++) {
        n += *(uint64_t *) ((u_char *) &peer[i] + offset);
    }

    return n;
}


static void
ngx_http_moe_health_json(ngx_http_moe_text_t *text,
    ngx_http_moe_engine_t *engine)
{
    size_t                   i;
    const char              *status;
    ngx_http_moe_channel_t  *ch;
    ngx_http_moe_peer_t     *peer;

    static const struct {
        const char  *name;
        size_t       offset;
    } words[] = {
        { "running", offsetof(struct abi_page, n_running) },
        { "queued", offsetof(struct abi_page, n_queued) },
        { "max_running", offsetof(struct abi_page, max_running) },
        { "max_queued", offsetof(struct abi_page, max_queued) },
        { "kv_pages", offsetof(struct abi_page, kv_pages) },
        { "kv_pages_used", offsetof(struct abi_page, kv_pages_used) },
        { "prompt_tokens", offsetof(struct abi_page, n_prompt_tok) },
        { "output_tokens", offsetof(struct abi_page, n_output_tok) },
        { "steps", offsetof(struct abi_page, n_steps) }
    }, counters[] = {
        { "attached", offsetof(ngx_http_moe_peer_t, n_attached) },
        { "accepted", offsetof(ngx_http_moe_peer_t, n_accepted) },
        { "done", offsetof(ngx_http_moe_peer_t, n_done) },
        { "error", offsetof(ngx_http_moe_peer_t, n_error) },
        { "cancelled", offsetof(ngx_http_moe_peer_t, n_cancelled) },
        { "open", offsetof(ngx_http_moe_peer_t, n_open) },
        { "late_frames", offsetof(ngx_http_moe_peer_t, n_late) },
        { "missed_wakeups", offsetof(ngx_http_moe_peer_t, n_missed) },
        { "resumed", offsetof(ngx_http_moe_peer_t, n_resumed) }
    };

    ch = ngx_http_moe_balance_any(engine);
    peer = engine->peers.elts;

    if (ngx_http_moe_balance_ready(engine)) {
        status = "ok";

    } else if (ch) {
        status = "draining";

    } else {
        status = "unavailable";
    }

    ngx_http_moe_text_lit(text, "{\"status\":\"");
    ngx_http_moe_text_add(text, status, ngx_strlen(status));
    ngx_http_moe_text_lit(text, "\",\"engine\":\"");
    ngx_http_moe_text_json(text, engine->name.data, engine->name.len);
    ngx_http_moe_text_lit(text, "\"");

    if (engine->peers.nelts > 1) {
        ngx_http_moe_text_lit(text, ",\"engines\":");
        ngx_http_moe_text_uint(text, engine->peers.nelts);
        ngx_http_moe_text_lit(text, ",\"engines_ready\":");
        ngx_http_moe_text_uint(text, ngx_http_moe_balance_ready(engine));
    }

    if (ch) {

        ngx_http_moe_text_lit(text, ",\"model\":\"");
        ngx_http_moe_text_json(text, (u_char *) ch->welcome.model,
                               ngx_strlen(ch->welcome.model));
        ngx_http_moe_text_lit(text, "\"");

        for (i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
            ngx_http_moe_text_lit(text, ",\"");
            ngx_http_moe_text_add(text, words[i].name,
                                  ngx_strlen(words[i].name));
            ngx_http_moe_text_lit(text, "\":");
            ngx_http_moe_text_uint(text, ngx_http_moe_health_word(engine,
                                             words[i].offset));
        }
    }

    if (peer->channel) {
        ngx_http_moe_text_lit(text, ",\"worker\":{\"pid\":");
        ngx_http_moe_text_uint(text, (uint64_t) ngx_pid);

        for (i = 0; i < sizeof(counters) / sizeof(counters[0]); i++) {
            ngx_http_moe_text_lit(text, ",\"");
            ngx_http_moe_text_add(text, counters[i].name,
                                  ngx_strlen(counters[i].name));
            ngx_http_moe_text_lit(text, "\":");
            ngx_http_moe_text_uint(text, ngx_http_moe_health_counter(engine,
                                             counters[i].offset));
        }

        ngx_http_moe_text_lit(text, "}");
    }

    ngx_http_moe_text_lit(text, "}\n");
}


ngx_int_t
ngx_http_moe_text_send(ngx_http_request_t *r, ngx_uint_t status,
    const char *type, ngx_http_moe_text_t *text)
{
    ngx_int_t     rc;
    ngx_buf_t    *b;
    ngx_chain_t   out;

    if (text->failed) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = status;
    r->headers_out.content_length_n = (off_t) ngx_http_moe_text_len(text);
    r->headers_out.content_type.data = (u_char *) type;
    r->headers_out.content_type.len = ngx_strlen(type);
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = text->start;
    b->last = text->last;
    b->memory = 1;
    b->last_buf = (r == r->main) ? 1 : 0;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}

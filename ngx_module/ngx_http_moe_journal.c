/*
 * ngx_http_moe_journal.c - what a stream has said, for a client that lost its
 * connection and comes back.
 *
 * In: a stream's text, event by event.  Out: blocks of whole events, found by
 * stream and event.  A journal belongs to a stream while that runs (ctx), and
 * is kept for a while after it, or after the last client has left; one client
 * at a time reads from it (view).
 *
 * Memory is bounded: the oldest events go when a client was given them, and
 * when those that nobody was given fill it, the stream gets no more credit and
 * stops until somebody reads.  Of streams that have ended a worker keeps
 * NGX_HTTP_MOE_KEPT_MAX bytes.
 *
 * Must not know frames, JSON or sockets.
 */

#include "ngx_http_moe_module.h"

#include <ngx_sha1.h>


#define NGX_HTTP_MOE_BLOCK_SIZE  8192
#define NGX_HTTP_MOE_KEPT_MAX    (64 * 1024 * 1024)


static ngx_int_t ngx_http_moe_journal_event(ngx_http_moe_journal_t *j,
    const u_char *data, size_t n);
static void ngx_http_moe_journal_trim(ngx_http_moe_journal_t *j);
static void ngx_http_moe_journal_keep(ngx_http_moe_journal_t *j);
static void ngx_http_moe_journal_timer(ngx_event_t *ev);


/* Of this process. */

static ngx_rbtree_t       ngx_http_moe_journals;
static ngx_rbtree_node_t  ngx_http_moe_journals_sentinel;
static ngx_queue_t        ngx_http_moe_kept;        /* oldest first */
static size_t             ngx_http_moe_kept_bytes;


void
ngx_http_moe_journal_init(void)
{
    ngx_rbtree_init(&ngx_http_moe_journals, &ngx_http_moe_journals_sentinel,
                    ngx_str_rbtree_insert_value);
    ngx_queue_init(&ngx_http_moe_kept);
}


void
ngx_http_moe_journal_exit(void)
{
    ngx_rbtree_node_t  *root;

    if (ngx_http_moe_journals.root == NULL) {
        return;
    }

    for ( ;; ) {
        root = ngx_http_moe_journals.root;

        if (root == ngx_http_moe_journals.sentinel) {
            return;
        }

        ngx_http_moe_journal_destroy((ngx_http_moe_journal_t *) root);
    }
}


/* Whose stream it is: who has the same credentials may read it. */

ngx_int_t
ngx_http_moe_journal_owner(ngx_http_request_t *r, u_char *owner)
{
    ngx_str_t                 key;
    ngx_sha1_t                sha1;
    ngx_http_moe_loc_conf_t  *mlcf;

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    if (mlcf->resume_key) {
        if (ngx_http_complex_value(r, mlcf->resume_key, &key) != NGX_OK) {
            return NGX_ERROR;
        }

    } else if (r->headers_in.authorization) {
        key = r->headers_in.authorization->value;

    } else {
        ngx_str_null(&key);
    }

    ngx_sha1_init(&sha1);
    ngx_sha1_update(&sha1, key.data, key.len);
    ngx_sha1_final(owner, &sha1);

    return NGX_OK;
}


/* For a request that has just got its secret. */

ngx_int_t
ngx_http_moe_journal_create(ngx_http_moe_ctx_t *ctx, const u_char *secret)
{
    ngx_http_moe_journal_t   *j;
    ngx_http_moe_loc_conf_t  *mlcf;

    mlcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_moe_module);

    j = ngx_calloc(sizeof(ngx_http_moe_journal_t), ngx_cycle->log);
    if (j == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_moe_journal_owner(ctx->request, j->owner) != NGX_OK) {
        ngx_free(j);
        return NGX_ERROR;
    }

    ngx_memcpy(j->secret, secret, NGX_HTTP_MOE_SECRET_LEN);

    j->sn.str.data = j->secret;
    j->sn.str.len = NGX_HTTP_MOE_SECRET_LEN;
    j->sn.node.key = ngx_crc32_short(j->secret, NGX_HTTP_MOE_SECRET_LEN);

    ngx_queue_init(&j->blocks);

    j->limit = mlcf->resume_buffer;
    j->timeout = mlcf->resume;
    j->next = 1;
    j->engine = ctx->engine;
    j->ctx = ctx;

    j->timer.handler = ngx_http_moe_journal_timer;
    j->timer.data = j;
    j->timer.log = ngx_cycle->log;

    ngx_rbtree_insert(&ngx_http_moe_journals, &j->sn.node);

    ctx->journal = j;

    return NGX_OK;
}


/* NULL: there is none, or it is another's, which is not told apart. */

ngx_http_moe_journal_t *
ngx_http_moe_journal_find(const u_char *secret, const u_char *owner)
{
    uint32_t                 hash;
    ngx_str_t                str;
    ngx_http_moe_journal_t  *j;

    str.data = (u_char *) secret;
    str.len = NGX_HTTP_MOE_SECRET_LEN;

    hash = ngx_crc32_short(str.data, str.len);

    j = (ngx_http_moe_journal_t *)
            ngx_str_rbtree_lookup(&ngx_http_moe_journals, &str, hash);

    if (j == NULL || ngx_memcmp(j->owner, owner, NGX_HTTP_MOE_OWNER_LEN) != 0) {
        return NULL;
    }

    return j;
}


/* Takes the events in the text; comments, pings, are not worth it. */

ngx_int_t
ngx_http_moe_journal_add(ngx_http_moe_journal_t *j,
    const ngx_http_moe_text_t *text)
{
    u_char  *p, *end;

    for (p = text->start; p < text->last; p = end) {

        end = memmem(p, (size_t) (text->last - p), "\n\n", 2);
        end = end ? end + 2 : text->last;

        if (*p != ':'
            && ngx_http_moe_journal_event(j, p, (size_t) (end - p)) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_journal_event(ngx_http_moe_journal_t *j, const u_char *data,
    size_t n)
{
    size_t                 size;
    ngx_http_moe_block_t  *block;

    block = NULL;

    if (!ngx_queue_empty(&j->blocks)) {
        block = ngx_queue_data(ngx_queue_last(&j->blocks),
                               ngx_http_moe_block_t, queue);
    }

    if (block == NULL || (size_t) (block->end - block->last) < n) {

        ngx_http_moe_journal_trim(j);

        size = ngx_max(n, NGX_HTTP_MOE_BLOCK_SIZE);

        block = ngx_alloc(sizeof(ngx_http_moe_block_t) + size, ngx_cycle->log);
        if (block == NULL) {
            return NGX_ERROR;
        }

        block->first = j->next;
        block->n = 0;
        block->last = block->data;
        block->end = block->data + size;

        j->n_bytes += size;
        ngx_queue_insert_tail(&j->blocks, &block->queue);
    }

    block->last = ngx_cpymem(block->last, data, n);
    block->n++;
    j->next++;

    return NGX_OK;
}


/* Makes room: the oldest go, if they have been given away. */

static void
ngx_http_moe_journal_trim(ngx_http_moe_journal_t *j)
{
    ngx_http_moe_block_t  *block;

    while (j->n_bytes >= j->limit && !ngx_queue_empty(&j->blocks)) {

        block = ngx_queue_data(ngx_queue_head(&j->blocks),
                               ngx_http_moe_block_t, queue);

        if (block->first + block->n - 1 > j->sent
            || (j->view && j->view->block == block))
        {
            return;
        }

        j->n_bytes -= (size_t) (block->end - block->data);
        ngx_queue_remove(&block->queue);
        ngx_free(block);
    }
}


/* Whether the stream has to wait for somebody to read. */

ngx_uint_t
ngx_http_moe_journal_full(ngx_http_moe_journal_t *j)
{
    ngx_http_moe_journal_trim(j);

    return j->n_bytes >= j->limit + NGX_HTTP_MOE_BLOCK_SIZE;
}


/* Where the event with that id begins; NGX_DECLINED: it is gone, or has never
 * been.  The one to come is at the end. */

ngx_int_t
ngx_http_moe_journal_seek(ngx_http_moe_journal_t *j, uint64_t id,
    ngx_http_moe_view_t *view)
{
    u_char                *p;
    uint64_t               i;
    ngx_queue_t           *q;
    ngx_http_moe_block_t  *block;

    view->block = NULL;
    view->pos = NULL;

    if (id == 0 || id > j->next) {
        return NGX_DECLINED;
    }

    for (q = ngx_queue_last(&j->blocks);
         q != ngx_queue_sentinel(&j->blocks);
         q = ngx_queue_prev(q))
    {
        block = ngx_queue_data(q, ngx_http_moe_block_t, queue);

        if (id < block->first) {
            continue;
        }

        p = block->data;

        for (i = block->first; i < id; i++) {
            p = (u_char *) memmem(p, (size_t) (block->last - p), "\n\n", 2) + 2;
        }

        view->block = block;
        view->pos = p;

        return NGX_OK;
    }

    return (id == j->next) ? NGX_OK : NGX_DECLINED;
}


/* The view's next bytes; 0: it has all there are. */

size_t
ngx_http_moe_journal_read(ngx_http_moe_journal_t *j,
    ngx_http_moe_view_t *view)
{
    ngx_queue_t  *q;

    for ( ;; ) {

        if (view->block && view->pos < view->block->last) {
            return (size_t) (view->block->last - view->pos);
        }

        q = view->block ? ngx_queue_next(&view->block->queue)
                        : ngx_queue_head(&j->blocks);

        if (q == ngx_queue_sentinel(&j->blocks)) {
            j->sent = j->next - 1;
            return 0;
        }

        view->block = ngx_queue_data(q, ngx_http_moe_block_t, queue);
        view->pos = view->block->data;
        j->sent = view->block->first - 1;
    }
}


/* Tokens that a client was given after all. */

void
ngx_http_moe_journal_delivered(ngx_http_moe_journal_t *j)
{
    if (j->ctx) {
        j->ctx->n_delivered += j->n_tok;

    } else {
        ngx_http_moe_metrics_add(j->engine, n_delivered, j->n_tok);
    }

    j->n_tok = 0;
}


/* The request is over: what it has said is kept, if it was all. */

void
ngx_http_moe_journal_close(ngx_http_moe_ctx_t *ctx)
{
    ngx_http_moe_journal_t  *j;

    j = ctx->journal;

    if (j == NULL) {
        return;
    }

    ctx->journal = NULL;
    j->ctx = NULL;

    if (ctx->end == NGX_HTTP_MOE_NO_END || !ctx->header_sent) {
        ngx_http_moe_journal_destroy(j);
        return;
    }

    j->ended = 1;
    ngx_http_moe_journal_keep(j);
    ngx_http_moe_journal_left(j);
    ngx_http_moe_share_send(j);
}


static void
ngx_http_moe_journal_keep(ngx_http_moe_journal_t *j)
{
    ngx_http_moe_journal_t  *old;

    j->kept = 1;
    ngx_http_moe_kept_bytes += j->n_bytes;
    ngx_queue_insert_tail(&ngx_http_moe_kept, &j->queue);

    while (ngx_http_moe_kept_bytes > NGX_HTTP_MOE_KEPT_MAX) {

        old = ngx_queue_data(ngx_queue_head(&ngx_http_moe_kept),
                             ngx_http_moe_journal_t, queue);
        if (old == j) {
            return;
        }

        ngx_http_moe_journal_destroy(old);
    }
}


/*
 * Its reader has left, or there was none.  A worker that shuts down waits for
 * the one who has yet to get something, not for the one who may ask twice.
 */

void
ngx_http_moe_journal_left(ngx_http_moe_journal_t *j)
{
    if (j->ctx) {
        j->ctx->left_at = ngx_current_msec;
        ngx_http_moe_timeout_arm(j->ctx);
        return;
    }

    j->timer.cancelable = (j->sent + 1 == j->next);
    ngx_add_timer(&j->timer, j->timeout);
}


static void
ngx_http_moe_journal_timer(ngx_event_t *ev)
{
    ngx_http_moe_journal_t  *j;

    j = ev->data;

    if (j->view) {
        ngx_http_moe_journal_left(j);
        return;
    }

    ngx_http_moe_journal_destroy(j);
}


void
ngx_http_moe_journal_destroy(ngx_http_moe_journal_t *j)
{
    ngx_queue_t          *q;
    ngx_http_moe_view_t  *view;

    view = j->view;

    if (view) {
        j->view = NULL;
        view->journal = NULL;
        ngx_http_moe_share_close(view);
    }

    if (j->kept) {
        ngx_http_moe_kept_bytes -= j->n_bytes;
        ngx_queue_remove(&j->queue);
    }

    if (j->timer.timer_set) {
        ngx_del_timer(&j->timer);
    }

    if (j->ctx) {
        j->ctx->journal = NULL;
    }

    ngx_rbtree_delete(&ngx_http_moe_journals, &j->sn.node);

    while (!ngx_queue_empty(&j->blocks)) {
        q = ngx_queue_head(&j->blocks);
        ngx_queue_remove(q);
        ngx_free(ngx_queue_data(q, ngx_http_moe_block_t, queue));
    }

    ngx_free(j);
}

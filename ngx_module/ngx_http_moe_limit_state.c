/*
 * ngx_http_moe_limit_state.c - quotas that outlive a restart.
 *
 * In: the nodes of a token zone.  Out: a file of lines, written anew every few
 * seconds by one worker and read when a zone begins:
 *
 *      WINDOW USED KEY         numbers; the key in hexadecimal
 *
 * Buckets are not kept: they fill in less time than a restart is apart.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_STATE_MSEC  5000
#define NGX_HTTP_MOE_STATE_MAX   (256 * 1024 * 1024)


static void ngx_http_moe_limit_state_timer(ngx_event_t *ev);
static void ngx_http_moe_limit_save(ngx_shm_zone_t *zone, ngx_log_t *log);
static ngx_int_t ngx_http_moe_limit_line(ngx_shm_zone_t *zone, u_char *p,
    u_char *last);


static ngx_event_t       ngx_http_moe_limit_event;
static ngx_connection_t  ngx_http_moe_limit_dummy;


/* One of the workers does it for all. */

void
ngx_http_moe_limit_state_start(ngx_http_moe_main_conf_t *mmcf, ngx_log_t *log)
{
    ngx_event_t  *ev;

    if (ngx_worker != 0 || mmcf->token_zones.nelts == 0) {
        return;
    }

    ngx_http_moe_limit_dummy.fd = (ngx_socket_t) -1;

    ev = &ngx_http_moe_limit_event;

    ngx_memzero(ev, sizeof(ngx_event_t));

    ev->handler = ngx_http_moe_limit_state_timer;
    ev->data = &ngx_http_moe_limit_dummy;
    ev->log = log;
    ev->cancelable = 1;

    ngx_http_moe_limit_dummy.data = mmcf;

    ngx_add_timer(ev, NGX_HTTP_MOE_STATE_MSEC);
}


void
ngx_http_moe_limit_state_save(ngx_http_moe_main_conf_t *mmcf, ngx_log_t *log)
{
    ngx_uint_t        i;
    ngx_shm_zone_t  **zone;

    if (ngx_worker != 0) {
        return;
    }

    zone = mmcf->token_zones.elts;

    for (i = 0; i < mmcf->token_zones.nelts; i++) {
        ngx_http_moe_limit_save(zone[i], log);
    }
}


static void
ngx_http_moe_limit_state_timer(ngx_event_t *ev)
{
    ngx_connection_t  *c;

    c = ev->data;

    ngx_http_moe_limit_state_save(c->data, ev->log);

    ngx_add_timer(ev, NGX_HTTP_MOE_STATE_MSEC);
}


static void
ngx_http_moe_limit_save(ngx_shm_zone_t *zone, ngx_log_t *log)
{
    size_t                      n;
    u_char                     *buf, *p, *end, *name;
    ngx_fd_t                    fd;
    ngx_uint_t                  failed;
    ngx_queue_t                *q;
    ngx_http_moe_limit_node_t  *ln;
    ngx_http_moe_limit_zone_t  *lz;

    lz = zone->data;

    if (lz->state.len == 0) {
        return;
    }

    /* The zone is never larger, and a byte of a key is two in the file. */

    n = 2 * zone->shm.size + lz->state.len + 8;

    buf = ngx_alloc(n, log);
    if (buf == NULL) {
        return;
    }

    name = buf;
    p = ngx_sprintf(buf, "%V.tmp%Z", &lz->state);
    end = buf + n - NGX_HTTP_MOE_KEY_MAX * 2 - 2 * NGX_INT64_LEN - 4;
    buf = p;

    ngx_shmtx_lock(&lz->shpool->mutex);

    for (q = ngx_queue_last(&lz->sh->queue);
         q != ngx_queue_sentinel(&lz->sh->queue) && p < end;
         q = ngx_queue_prev(q))
    {
        ln = ngx_queue_data(q, ngx_http_moe_limit_node_t, queue);

        if (ln->used <= 0) {
            continue;
        }

        p = ngx_sprintf(p, "%ui %L ", ln->window, ln->used);
        p = ngx_hex_dump(p, ln->data, ln->len);
        *p++ = '\n';
    }

    ngx_shmtx_unlock(&lz->shpool->mutex);

    fd = ngx_open_file(name, NGX_FILE_WRONLY,
                       NGX_FILE_CREATE_OR_OPEN|NGX_FILE_TRUNCATE,
                       NGX_FILE_OWNER_ACCESS);

    failed = (fd == NGX_INVALID_FILE
              || ngx_write_fd(fd, buf, (size_t) (p - buf)) != p - buf);

    if (fd != NGX_INVALID_FILE && ngx_close_file(fd) == NGX_FILE_ERROR) {
        failed = 1;
    }

    if (failed || ngx_rename_file(name, lz->state.data) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_CRIT, log, ngx_errno,
                      "state \"%V\" could not be written", &lz->state);
    }

    ngx_free(name);
}


/* A file that is not there is a beginning; a broken line is left out. */

void
ngx_http_moe_limit_state_load(ngx_shm_zone_t *zone)
{
    off_t                       size;
    size_t                      n_bad;
    u_char                     *buf, *p, *end, *last;
    ngx_fd_t                    fd;
    ngx_file_info_t             fi;
    ngx_http_moe_limit_zone_t  *lz;

    lz = zone->data;

    fd = ngx_open_file(lz->state.data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (fd == NGX_INVALID_FILE) {
        if (ngx_errno != NGX_ENOENT) {
            ngx_log_error(NGX_LOG_WARN, zone->shm.log, ngx_errno,
                          "state \"%V\" could not be opened", &lz->state);
        }

        return;
    }

    buf = NULL;
    n_bad = 0;
    size = (ngx_fd_info(fd, &fi) == NGX_FILE_ERROR) ? -1 : ngx_file_size(&fi);

    if (size > 0 && size <= NGX_HTTP_MOE_STATE_MAX) {
        buf = ngx_alloc((size_t) size, zone->shm.log);
    }

    if (size != 0
        && (buf == NULL || ngx_read_fd(fd, buf, (size_t) size) != size))
    {
        ngx_log_error(NGX_LOG_WARN, zone->shm.log, 0,
                      "state \"%V\" could not be read: %O bytes, "
                      "expected at most %d", &lz->state, size,
                      NGX_HTTP_MOE_STATE_MAX);

    } else if (size != 0) {

        end = buf + size;

        for (p = buf; p < end; p = last + 1) {

            last = ngx_strlchr(p, end, '\n');

            if (last == NULL) {
                n_bad++;
                break;
            }

            n_bad += (ngx_http_moe_limit_line(zone, p, last) != NGX_OK);
        }
    }

    if (n_bad) {
        ngx_log_error(NGX_LOG_WARN, zone->shm.log, 0,
                      "state \"%V\": %uz lines were left out", &lz->state,
                      n_bad);
    }

    if (buf) {
        ngx_free(buf);
    }

    (void) ngx_close_file(fd);
}


/* WINDOW " " USED " " HEX */

static ngx_int_t
ngx_http_moe_limit_line(ngx_shm_zone_t *zone, u_char *p, u_char *last)
{
    u_char     *space, key[NGX_HTTP_MOE_KEY_MAX];
    ngx_int_t   window, used;
    ngx_str_t   s;

    space = ngx_strlchr(p, last, ' ');
    if (space == NULL) {
        return NGX_ERROR;
    }

    window = ngx_atoi(p, (size_t) (space - p));
    p = space + 1;

    space = ngx_strlchr(p, last, ' ');
    if (space == NULL) {
        return NGX_ERROR;
    }

    used = ngx_atoi(p, (size_t) (space - p));
    p = space + 1;

    s.data = key;

    if (window <= 0 || used <= 0 || p == last || (last - p) % 2 != 0
        || last - p > 2 * NGX_HTTP_MOE_KEY_MAX)
    {
        return NGX_ERROR;
    }

    s.len = (size_t) (last - p) / 2;

    if (ngx_http_moe_hex(key, p, s.len) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_moe_limit_restore(zone, &s, (ngx_uint_t) window, used);
}

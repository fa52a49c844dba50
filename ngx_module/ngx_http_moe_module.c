/*
 * ngx_http_moe_module.c - directives, merging and start-up.  No logic.
 *
 *      moe_engine NAME { socket unix:/path; ... }      http
 *      moe_pass NAME;                                  location
 *      moe_health NAME;                                location
 *      moe_token_zone KEY zone=NAME:SIZE [state=PATH]; http
 *      moe_limit_tokens zone=NAME ...;                 http, server, location
 *      moe_status prometheus;                          location
 *      moe_header_delay TIME;                          http, server, location
 *      moe_cors on | off | ORIGIN ...;                 http, server, location
 *      moe_priority VALUE;                             http, server, location
 *      moe_cache_salt VALUE;                           http, server, location
 *      moe_resume TIME;                                http, server, location
 *      moe_resume_buffer SIZE;                         http, server, location
 *      moe_resume_key VALUE;                           http, server, location
 */

#include "ngx_http_moe_module.h"


static char *ngx_http_moe_engine(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_moe_engine_option(ngx_conf_t *cf, ngx_command_t *dummy,
    void *conf);
static char *ngx_http_moe_engine_socket(ngx_conf_t *cf,
    ngx_http_moe_engine_t *engine, ngx_str_t *value);
static char *ngx_http_moe_engine_balance(ngx_conf_t *cf,
    ngx_http_moe_engine_t *engine, ngx_str_t *value);
static void ngx_http_moe_engine_init(ngx_http_moe_engine_t *engine,
    ngx_uint_t unset);
static ngx_http_moe_engine_t *ngx_http_moe_engine_find(ngx_conf_t *cf,
    ngx_str_t *name);
static char *ngx_http_moe_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_moe_status(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

static ngx_int_t ngx_http_moe_preconfiguration(ngx_conf_t *cf);
static ngx_int_t ngx_http_moe_postconfiguration(ngx_conf_t *cf);
static void *ngx_http_moe_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_moe_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_moe_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static void ngx_http_moe_resume_on(ngx_conf_t *cf);
static ngx_int_t ngx_http_moe_init_process(ngx_cycle_t *cycle);
static void ngx_http_moe_exit_process(ngx_cycle_t *cycle);


/* The options of moe_engine: numbers and times, each with its limits. */

static const struct {
    ngx_str_t    name;
    ngx_uint_t   is_time;
    ngx_uint_t   value;                 /* default */
    ngx_uint_t   min;
    ngx_uint_t   max;
    size_t       offset;
} ngx_http_moe_options[] = {

    { ngx_string("queue"), 0, 256, 1, 1000000,
      offsetof(ngx_http_moe_engine_t, queue) },

    { ngx_string("queue_tokens"), 0, 0, 0, 1000000000,
      offsetof(ngx_http_moe_engine_t, queue_tokens) },

    { ngx_string("streams"), 0, 1024, 1, ABI_SLOTS_MAX,
      offsetof(ngx_http_moe_engine_t, streams) },

    { ngx_string("connect_timeout"), 1, 2000, 1, 3600000,
      offsetof(ngx_http_moe_engine_t, connect_timeout) },

    { ngx_string("queue_timeout"), 1, 30000, 1, 86400000,
      offsetof(ngx_http_moe_engine_t, queue_timeout) },

    { ngx_string("first_token_timeout"), 1, 600000, 1, 86400000,
      offsetof(ngx_http_moe_engine_t, first_token_timeout) },

    { ngx_string("token_timeout"), 1, 60000, 1, 86400000,
      offsetof(ngx_http_moe_engine_t, token_timeout) },

    { ngx_string("request_timeout"), 1, 0, 0, 604800000,
      offsetof(ngx_http_moe_engine_t, request_timeout) },

    { ngx_string("ping"), 1, 15000, 0, 86400000,
      offsetof(ngx_http_moe_engine_t, ping) },

    { ngx_string("heartbeat"), 1, 10000, 1000, 3600000,
      offsetof(ngx_http_moe_engine_t, heartbeat) },

    { ngx_string("resume_timeout"), 1, 30000, 0, 86400000,
      offsetof(ngx_http_moe_engine_t, resume_timeout) },

    { ngx_null_string, 0, 0, 0, 0, 0 }
};


static ngx_command_t  ngx_http_moe_commands[] = {

    { ngx_string("moe_engine"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_BLOCK|NGX_CONF_TAKE1,
      ngx_http_moe_engine,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("moe_pass"),
      NGX_HTTP_LOC_CONF|NGX_HTTP_LIF_CONF|NGX_CONF_TAKE1,
      ngx_http_moe_pass,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("moe_health"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_moe_pass,
      NGX_HTTP_LOC_CONF_OFFSET,
      1,
      NULL },

    { ngx_string("moe_token_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE23,
      ngx_http_moe_token_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("moe_limit_tokens"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_moe_limit_tokens_conf,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("moe_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_moe_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("moe_header_delay"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_moe_loc_conf_t, header_delay),
      NULL },

    { ngx_string("moe_cors"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_moe_cors,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("moe_priority"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_moe_loc_conf_t, priority),
      NULL },

    { ngx_string("moe_cache_salt"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_moe_loc_conf_t, cache_salt),
      NULL },

    { ngx_string("moe_resume"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_moe_loc_conf_t, resume),
      NULL },

    { ngx_string("moe_resume_buffer"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_moe_loc_conf_t, resume_buffer),
      NULL },

    { ngx_string("moe_resume_key"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_moe_loc_conf_t, resume_key),
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_moe_module_ctx = {
    ngx_http_moe_preconfiguration,         /* preconfiguration */
    ngx_http_moe_postconfiguration,        /* postconfiguration */

    ngx_http_moe_create_main_conf,         /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_moe_create_loc_conf,          /* create location configuration */
    ngx_http_moe_merge_loc_conf            /* merge location configuration */
};


ngx_module_t  ngx_http_moe_module = {
    NGX_MODULE_V1,
    &ngx_http_moe_module_ctx,              /* module context */
    ngx_http_moe_commands,                 /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_moe_init_process,             /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_moe_exit_process,             /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static char *
ngx_http_moe_engine(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_moe_main_conf_t *mmcf = conf;

    char                    *rv;
    ngx_str_t               *value;
    ngx_conf_t               save;
    ngx_http_moe_engine_t  **slot, *engine;

    value = cf->args->elts;

    if (ngx_http_moe_engine_find(cf, &value[1])) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "duplicate moe_engine \"%V\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    engine = ngx_pcalloc(cf->pool, sizeof(ngx_http_moe_engine_t));
    if (engine == NULL) {
        return NGX_CONF_ERROR;
    }

    engine->name = value[1];

    if (ngx_array_init(&engine->aliases, cf->pool, 1, sizeof(ngx_str_t))
        != NGX_OK
        || ngx_array_init(&engine->peers, cf->pool, 1,
                          sizeof(ngx_http_moe_peer_t))
           != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    ngx_http_moe_engine_init(engine, 1);

    save = *cf;
    cf->handler = ngx_http_moe_engine_option;
    cf->handler_conf = (char *) engine;

    rv = ngx_conf_parse(cf, NULL);

    *cf = save;

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    ngx_http_moe_engine_init(engine, 0);

    if (engine->peers.nelts == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "moe_engine \"%V\" has no \"socket\"",
                           &engine->name);
        return NGX_CONF_ERROR;
    }

    if (ring_event_bytes((uint32_t) engine->streams, ABI_WINDOW_MIN)
        > ABI_RING_MAX)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "moe_engine \"%V\": \"streams\" %ui need more than "
                           "the %ui bytes that a ring can have",
                           &engine->name, engine->streams,
                           (ngx_uint_t) ABI_RING_MAX);
        return NGX_CONF_ERROR;
    }

    slot = ngx_array_push(&mmcf->engines);
    if (slot == NULL) {
        return NGX_CONF_ERROR;
    }

    *slot = engine;

    return NGX_CONF_OK;
}


/* Before the block all options are unset, after it these take the default. */

static void
ngx_http_moe_engine_init(ngx_http_moe_engine_t *engine, ngx_uint_t unset)
{
    ngx_uint_t   i, *p;

    for (i = 0; ngx_http_moe_options[i].name.len; i++) {

        p = (ngx_uint_t *) ((u_char *) engine
                            + ngx_http_moe_options[i].offset);

        if (unset) {
            *p = NGX_CONF_UNSET_UINT;

        } else if (*p == NGX_CONF_UNSET_UINT) {
            *p = ngx_http_moe_options[i].value;
        }
    }
}


static char *
ngx_http_moe_engine_option(ngx_conf_t *cf, ngx_command_t *dummy, void *conf)
{
    ngx_http_moe_engine_t *engine = conf;

    ngx_int_t    n;
    ngx_str_t   *value, *alias;
    ngx_uint_t   i, *p;

    value = cf->args->elts;

    if (cf->args->nelts != 2) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" in moe_engine takes one value", &value[0]);
        return NGX_CONF_ERROR;
    }

    if (ngx_strcmp(value[0].data, "socket") == 0) {
        return ngx_http_moe_engine_socket(cf, engine, &value[1]);
    }

    if (ngx_strcmp(value[0].data, "balance") == 0) {
        return ngx_http_moe_engine_balance(cf, engine, &value[1]);
    }

    if (ngx_strcmp(value[0].data, "alias") == 0) {
        alias = ngx_array_push(&engine->aliases);
        if (alias == NULL) {
            return NGX_CONF_ERROR;
        }

        *alias = value[1];
        return NGX_CONF_OK;
    }

    for (i = 0; ngx_http_moe_options[i].name.len; i++) {

        if (ngx_strcmp(value[0].data, ngx_http_moe_options[i].name.data)
            != 0)
        {
            continue;
        }

        if (ngx_http_moe_options[i].is_time) {
            n = ngx_parse_time(&value[1], 0);

        } else {
            n = ngx_atoi(value[1].data, value[1].len);
        }

        if (n == NGX_ERROR || (ngx_uint_t) n < ngx_http_moe_options[i].min
            || (ngx_uint_t) n > ngx_http_moe_options[i].max)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid value \"%V\" of \"%V\" in moe_engine, "
                               "expected %ui to %ui%s",
                               &value[1], &value[0],
                               ngx_http_moe_options[i].min,
                               ngx_http_moe_options[i].max,
                               ngx_http_moe_options[i].is_time
                                   ? " milliseconds" : "");
            return NGX_CONF_ERROR;
        }

        p = (ngx_uint_t *) ((u_char *) engine
                            + ngx_http_moe_options[i].offset);

        if (*p != NGX_CONF_UNSET_UINT) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate \"%V\" in moe_engine \"%V\"",
                               &value[0], &engine->name);
            return NGX_CONF_ERROR;
        }

        *p = (ngx_uint_t) n;

        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "unknown option \"%V\" in moe_engine", &value[0]);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_moe_engine_socket(ngx_conf_t *cf, ngx_http_moe_engine_t *engine,
    ngx_str_t *value)
{
    ngx_str_t             path;
    ngx_uint_t            i;
    ngx_http_moe_peer_t  *peer;

    peer = engine->peers.elts;

    for (i = 0; i < engine->peers.nelts; i++) {

        if (peer[i].socket.len == value->len
            && ngx_memcmp(peer[i].socket.data, value->data, value->len) == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate socket \"%V\" in moe_engine "
                               "\"%V\"", value, &engine->name);
            return NGX_CONF_ERROR;
        }
    }

    if (i == NGX_HTTP_MOE_PEERS_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "more than %d sockets in moe_engine \"%V\"",
                           NGX_HTTP_MOE_PEERS_MAX, &engine->name);
        return NGX_CONF_ERROR;
    }

    if (value->len <= 5 || ngx_strncmp(value->data, "unix:", 5) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid socket \"%V\" in moe_engine \"%V\", "
                           "expected unix:/path", value, &engine->name);
        return NGX_CONF_ERROR;
    }

    path.data = value->data + 5;
    path.len = value->len - 5;

    if (ngx_conf_full_name(cf->cycle, &path, 0) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (path.len >= sizeof(peer->sockaddr.sun_path)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "socket \"%V\" in moe_engine \"%V\" is longer than "
                           "%uz bytes", &path, &engine->name,
                           sizeof(peer->sockaddr.sun_path) - 1);
        return NGX_CONF_ERROR;
    }

    peer = ngx_array_push(&engine->peers);
    if (peer == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(peer, sizeof(ngx_http_moe_peer_t));

    peer->engine = engine;
    peer->index = i;
    peer->socket = *value;
    peer->sockaddr.sun_family = AF_UNIX;
    ngx_memcpy(peer->sockaddr.sun_path, path.data, path.len);
    peer->socklen = sizeof(struct sockaddr_un);

    return NGX_CONF_OK;
}


static char *
ngx_http_moe_engine_balance(ngx_conf_t *cf, ngx_http_moe_engine_t *engine,
    ngx_str_t *value)
{
    if (ngx_strcmp(value->data, "prefix") == 0) {
        engine->by_prefix = 1;
        return NGX_CONF_OK;
    }

    if (ngx_strcmp(value->data, "least_busy") == 0) {
        engine->by_prefix = 0;
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid balance \"%V\" in moe_engine \"%V\", "
                       "expected least_busy or prefix", value, &engine->name);

    return NGX_CONF_ERROR;
}


static ngx_http_moe_engine_t *
ngx_http_moe_engine_find(ngx_conf_t *cf, ngx_str_t *name)
{
    ngx_uint_t                  i;
    ngx_http_moe_engine_t     **engine;
    ngx_http_moe_main_conf_t   *mmcf;

    mmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_moe_module);

    engine = mmcf->engines.elts;

    for (i = 0; i < mmcf->engines.nelts; i++) {
        if (engine[i]->name.len == name->len
            && ngx_memcmp(engine[i]->name.data, name->data, name->len) == 0)
        {
            return engine[i];
        }
    }

    return NULL;
}


/* moe_pass and moe_health: the engine may be defined further down. */

static char *
ngx_http_moe_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_moe_loc_conf_t *mlcf = conf;

    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    if (mlcf->name.data) {
        return "is duplicate";
    }

    value = cf->args->elts;

    mlcf->name = value[1];
    mlcf->health = cmd->offset;
    mlcf->file = cf->conf_file->file.name.data;
    mlcf->line = cf->conf_file->line;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    clcf->handler = mlcf->health ? ngx_http_moe_health_handler
                                 : ngx_http_moe_handler;

    return NGX_CONF_OK;
}


static char *
ngx_http_moe_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "prometheus") != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid format \"%V\" in \"moe_status\", "
                           "expected prometheus", &value[1]);
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_moe_prometheus_handler;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_moe_preconfiguration(ngx_conf_t *cf)
{
    return ngx_http_moe_variables_add(cf);
}


static ngx_int_t
ngx_http_moe_postconfiguration(ngx_conf_t *cf)
{
    if (ngx_http_moe_headers_init(cf) != NGX_OK
        || ngx_http_moe_metrics_init(cf) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_moe_error_init(cf);
}


static void *
ngx_http_moe_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_moe_main_conf_t  *mmcf;

    mmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_moe_main_conf_t));
    if (mmcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&mmcf->engines, cf->pool, 2,
                       sizeof(ngx_http_moe_engine_t *))
        != NGX_OK
        || ngx_array_init(&mmcf->token_zones, cf->pool, 2,
                          sizeof(ngx_shm_zone_t *))
           != NGX_OK)
    {
        return NULL;
    }

    return mmcf;
}


static void *
ngx_http_moe_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_moe_loc_conf_t  *mlcf;

    mlcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_moe_loc_conf_t));
    if (mlcf == NULL) {
        return NULL;
    }

    mlcf->header_delay = NGX_CONF_UNSET_MSEC;
    mlcf->cors = NGX_CONF_UNSET_PTR;
    mlcf->limits = NGX_CONF_UNSET_PTR;
    mlcf->resume = NGX_CONF_UNSET_MSEC;
    mlcf->resume_buffer = NGX_CONF_UNSET_SIZE;

    return mlcf;
}


static char *
ngx_http_moe_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_moe_loc_conf_t *prev = parent;
    ngx_http_moe_loc_conf_t *conf = child;

    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    ngx_conf_merge_msec_value(conf->header_delay, prev->header_delay, 5000);
    ngx_conf_merge_ptr_value(conf->cors, prev->cors, NULL);
    ngx_conf_merge_ptr_value(conf->limits, prev->limits, NULL);
    ngx_conf_merge_msec_value(conf->resume, prev->resume, 0);
    ngx_conf_merge_size_value(conf->resume_buffer, prev->resume_buffer,
                              1024 * 1024);

    if (conf->resume_key == NULL) {
        conf->resume_key = prev->resume_key;
    }

    if (conf->priority == NULL) {
        conf->priority = prev->priority;
    }

    if (conf->cache_salt == NULL) {
        conf->cache_salt = prev->cache_salt;
    }

    if (conf->resume) {
        ngx_http_moe_resume_on(cf);
    }

    if (conf->name.data == NULL) {

        /* "if" and "limit_except" are part of their location. */

        if (clcf->noname && prev->engine) {
            conf->name = prev->name;
            conf->file = prev->file;
            conf->line = prev->line;
            conf->health = prev->health;
            conf->engine = prev->engine;

            if (clcf->lmt_excpt && clcf->handler == NULL) {
                clcf->handler = conf->health ? ngx_http_moe_health_handler
                                             : ngx_http_moe_handler;
            }
        }

        return NGX_CONF_OK;
    }

    conf->engine = ngx_http_moe_engine_find(cf, &conf->name);

    if (conf->engine == NULL) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "unknown moe_engine \"%V\" in %s:%ui",
                      &conf->name, conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    /*
     * Prompts are larger than forms.  The core has merged its settings before
     * us, so its default cannot be told from the same value written down.
     */

    if (clcf->client_max_body_size == 1024 * 1024) {
        clcf->client_max_body_size = NGX_HTTP_MOE_BODY_MAX;
    }

    if (clcf->client_body_buffer_size == (size_t) 2 * ngx_pagesize) {
        clcf->client_body_buffer_size = NGX_HTTP_MOE_BODY_MAX / 4;
    }

    return NGX_CONF_OK;
}


/* Workers listen for each other only where streams are kept. */

static void
ngx_http_moe_resume_on(ngx_conf_t *cf)
{
    ngx_http_moe_main_conf_t  *mmcf;

    mmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_moe_module);
    mmcf->resume = 1;
}


/*
 * An absent engine is no reason not to start.  The processes that manage
 * caches come here as well, and have nothing to ask of an engine.
 */

static ngx_int_t
ngx_http_moe_init_process(ngx_cycle_t *cycle)
{
    ngx_uint_t                  i;
    ngx_http_moe_engine_t     **engine;
    ngx_http_moe_main_conf_t   *mmcf;

    if (ngx_process != NGX_PROCESS_WORKER
        && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    mmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_moe_module);

    if (mmcf == NULL) {
        return NGX_OK;
    }

    ngx_http_moe_limit_state_start(mmcf, cycle->log);
    ngx_http_moe_journal_init();

    if (mmcf->resume) {
        ngx_http_moe_share_init(cycle->log);
    }

    engine = mmcf->engines.elts;

    for (i = 0; i < mmcf->engines.nelts; i++) {
        if (ngx_http_moe_channel_init(engine[i], cycle) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static void
ngx_http_moe_exit_process(ngx_cycle_t *cycle)
{
    ngx_uint_t                  i;
    ngx_http_moe_engine_t     **engine;
    ngx_http_moe_main_conf_t   *mmcf;

    mmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_moe_module);

    if (mmcf == NULL) {
        return;
    }

    if (ngx_process == NGX_PROCESS_WORKER
        || ngx_process == NGX_PROCESS_SINGLE)
    {
        ngx_http_moe_limit_state_save(mmcf, cycle->log);
        ngx_http_moe_journal_exit();
        ngx_http_moe_share_exit();
    }

    engine = mmcf->engines.elts;

    for (i = 0; i < mmcf->engines.nelts; i++) {
        ngx_http_moe_channel_exit(engine[i]);
    }
}

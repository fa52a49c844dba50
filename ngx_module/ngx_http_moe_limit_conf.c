/*
 * ngx_http_moe_limit_conf.c - the two directives of token budgets.
 *
 * In: moe_token_zone and moe_limit_tokens as they are written.  Out: zones, and
 * the limits of a location.  No logic.
 */

#include "ngx_http_moe_module.h"


static int64_t ngx_http_moe_limit_number(u_char *p, size_t n,
    ngx_uint_t fraction);
static ngx_int_t ngx_http_moe_limit_param(ngx_conf_t *cf,
    ngx_http_moe_limit_t *limit, ngx_str_t *value);


/* moe_token_zone KEY zone=NAME:SIZE [state=PATH]; */

char *
ngx_http_moe_token_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_moe_main_conf_t *mmcf = conf;

    u_char                            *p;
    ssize_t                            size;
    ngx_str_t                         *value, name, s;
    ngx_shm_zone_t                    *shm_zone, **slot;
    ngx_http_moe_limit_zone_t         *lz;
    ngx_http_compile_complex_value_t   ccv;

    value = cf->args->elts;

    lz = ngx_pcalloc(cf->pool, sizeof(ngx_http_moe_limit_zone_t));
    if (lz == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = &lz->key;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    p = (value[2].len > 5 && ngx_strncmp(value[2].data, "zone=", 5) == 0)
        ? (u_char *) ngx_strchr(value[2].data, ':') : NULL;

    if (p == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\" in \"moe_token_zone\", "
                           "expected zone=name:size", &value[2]);
        return NGX_CONF_ERROR;
    }

    name.data = value[2].data + 5;
    name.len = (size_t) (p - name.data);
    s.data = p + 1;
    s.len = (size_t) (value[2].data + value[2].len - s.data);

    size = ngx_parse_size(&s);

    if (name.len == 0 || size < (ssize_t) (8 * ngx_pagesize)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid zone \"%V\" in \"moe_token_zone\", "
                           "expected a name and at least %ui bytes",
                           &value[2], 8 * ngx_pagesize);
        return NGX_CONF_ERROR;
    }

    shm_zone = ngx_shared_memory_add(cf, &name, (size_t) size,
                                     &ngx_http_moe_module);
    if (shm_zone == NULL) {
        return NGX_CONF_ERROR;
    }

    if (shm_zone->data) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "duplicate moe_token_zone \"%V\"", &name);
        return NGX_CONF_ERROR;
    }

    shm_zone->init = ngx_http_moe_limit_init_zone;
    shm_zone->data = lz;

    slot = ngx_array_push(&mmcf->token_zones);
    if (slot == NULL) {
        return NGX_CONF_ERROR;
    }

    *slot = shm_zone;

    if (cf->args->nelts == 3) {
        return NGX_CONF_OK;
    }

    if (value[3].len <= 6 || ngx_strncmp(value[3].data, "state=", 6) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\" in \"moe_token_zone\", "
                           "expected state=path", &value[3]);
        return NGX_CONF_ERROR;
    }

    lz->state.data = value[3].data + 6;
    lz->state.len = value[3].len - 6;

    if (ngx_conf_full_name(cf->cycle, &lz->state, 0) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* N[k|m|g], or with `fraction` N[.NNN], in thousandths. */

static int64_t
ngx_http_moe_limit_number(u_char *p, size_t n, ngx_uint_t fraction)
{
    ngx_int_t  v;

    if (fraction) {
        v = ngx_atofp(p, n, 3);
        return (v == NGX_ERROR || v > 1000000) ? NGX_ERROR : v;
    }

    v = 0;

    if (n > 1 && (p[n - 1] == 'k' || p[n - 1] == 'm' || p[n - 1] == 'g')) {
        v = (p[n - 1] == 'k') ? 1000 : (p[n - 1] == 'm') ? 1000000
                                                         : 1000000000;
        n--;
    }

    v = ngx_atoi(p, n) * ngx_max(v, 1);

    return (v <= 0 || v > (ngx_int_t) 1000000000000) ? NGX_ERROR : v * 1000;
}


/* zone=NAME rate=N/s|m|h burst=N quota=N/hour|day|month prompt=W cached=W
 * completion=W dry_run: one of them. */

static ngx_int_t
ngx_http_moe_limit_param(ngx_conf_t *cf, ngx_http_moe_limit_t *limit,
    ngx_str_t *value)
{
    u_char      *p, *end, *slash;
    int64_t      v;
    ngx_str_t    name;
    ngx_uint_t   i;

    static const struct {
        const char  *name;
        size_t       offset;
        ngx_uint_t   fraction;
    } numbers[] = {
        { "burst=", offsetof(ngx_http_moe_limit_t, burst), 0 },
        { "prompt=", offsetof(ngx_http_moe_limit_t, prompt), 1 },
        { "cached=", offsetof(ngx_http_moe_limit_t, cached), 1 },
        { "completion=", offsetof(ngx_http_moe_limit_t, completion), 1 }
    };

    end = value->data + value->len;

    if (ngx_strcmp(value->data, "dry_run") == 0) {
        limit->dry_run = 1;
        return NGX_OK;
    }

    if (ngx_strncmp(value->data, "zone=", 5) == 0) {
        name.data = value->data + 5;
        name.len = value->len - 5;
        limit->zone = ngx_shared_memory_add(cf, &name, 0,
                                            &ngx_http_moe_module);
        return limit->zone ? NGX_OK : NGX_ERROR;
    }

    for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        p = value->data + ngx_strlen(numbers[i].name);

        if (ngx_strncmp(value->data, numbers[i].name,
                        ngx_strlen(numbers[i].name)) == 0)
        {
            v = ngx_http_moe_limit_number(p, (size_t) (end - p),
                                          numbers[i].fraction);
            *(int64_t *) ((u_char *) limit + numbers[i].offset) = v;
            return (v == NGX_ERROR) ? NGX_ERROR : NGX_OK;
        }
    }

    slash = (u_char *) ngx_strchr(value->data, '/');

    if (slash == NULL) {
        return NGX_ERROR;
    }

    if (ngx_strncmp(value->data, "rate=", 5) == 0) {
        v = ngx_http_moe_limit_number(value->data + 5,
                                      (size_t) (slash - value->data - 5), 0);
        i = (ngx_strcmp(slash, "/s") == 0) ? 1000
            : (ngx_strcmp(slash, "/m") == 0) ? 60000
            : (ngx_strcmp(slash, "/h") == 0) ? 3600000 : 0;

        if (v == NGX_ERROR || i == 0) {
            return NGX_ERROR;
        }

        limit->rate = v;
        limit->per = (int64_t) i;
        return NGX_OK;
    }

    if (ngx_strncmp(value->data, "quota=", 6) == 0) {
        limit->quota = ngx_http_moe_limit_number(value->data + 6,
                           (size_t) (slash - value->data - 6), 0);
        limit->period = (ngx_strcmp(slash, "/hour") == 0) ? NGX_HTTP_MOE_HOUR
            : (ngx_strcmp(slash, "/day") == 0) ? NGX_HTTP_MOE_DAY
            : (ngx_strcmp(slash, "/month") == 0) ? NGX_HTTP_MOE_MONTH : 0;

        return (limit->quota == NGX_ERROR || limit->period == 0) ? NGX_ERROR
                                                                 : NGX_OK;
    }

    return NGX_ERROR;
}


/* moe_limit_tokens zone=NAME ...; */

char *
ngx_http_moe_limit_tokens_conf(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_moe_loc_conf_t *mlcf = conf;

    ngx_str_t             *value;
    ngx_uint_t             i;
    ngx_http_moe_limit_t  *limit;

    if (mlcf->limits == NGX_CONF_UNSET_PTR) {
        mlcf->limits = ngx_array_create(cf->pool, 2,
                                        sizeof(ngx_http_moe_limit_t));
        if (mlcf->limits == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    limit = ngx_array_push(mlcf->limits);
    if (limit == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(limit, sizeof(ngx_http_moe_limit_t));
    limit->prompt = 1000;
    limit->cached = 1000;
    limit->completion = 1000;

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {
        if (ngx_http_moe_limit_param(cf, limit, &value[i]) != NGX_OK) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\" in "
                               "\"moe_limit_tokens\"", &value[i]);
            return NGX_CONF_ERROR;
        }
    }

    if (limit->zone == NULL || (limit->rate == 0 && limit->quota == 0)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"moe_limit_tokens\" needs zone= and rate= or "
                           "quota=");
        return NGX_CONF_ERROR;
    }

    if (limit->rate && limit->burst == 0) {
        limit->burst = limit->rate;
    }

    return NGX_CONF_OK;
}

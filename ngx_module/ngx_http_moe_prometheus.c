/*
 * ngx_http_moe_prometheus.c - the page of numbers as Prometheus reads it.
 *
 * In: the counters of all workers (ngx_http_moe_metrics.c) and, for what the
 * engine says itself (running, waiting, pages), its page.  Out: text, with our
 * names, vLLM's and OpenTelemetry's for the same numbers, so that dashboards
 * which exist go on working.
 */

#include "ngx_http_moe_module.h"


static void ngx_http_moe_prometheus_label(ngx_http_moe_text_t *text,
    ngx_http_moe_engine_t *engine, const char *name);
static void ngx_http_moe_prometheus_gauges(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf);
static void ngx_http_moe_prometheus_counters(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf);
static void ngx_http_moe_prometheus_ends(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf);
static void ngx_http_moe_prometheus_histograms(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf);
static void ngx_http_moe_prometheus_type(ngx_http_moe_text_t *text,
    const char *name, const char *type, const char *help);
static void ngx_http_moe_prometheus_seconds(ngx_http_moe_text_t *text,
    uint64_t ms);


/* moe_status prometheus; */

ngx_int_t
ngx_http_moe_prometheus_handler(ngx_http_request_t *r)
{
    ngx_int_t                  rc;
    ngx_http_moe_text_t        text;
    ngx_http_moe_main_conf_t  *mmcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    mmcf = ngx_http_get_module_main_conf(r, ngx_http_moe_module);

    ngx_memzero(&text, sizeof(ngx_http_moe_text_t));
    text.pool = r->pool;

    ngx_http_moe_prometheus_gauges(&text, mmcf);
    ngx_http_moe_prometheus_counters(&text, mmcf);
    ngx_http_moe_prometheus_ends(&text, mmcf);
    ngx_http_moe_prometheus_histograms(&text, mmcf);

    return ngx_http_moe_text_send(r, NGX_HTTP_OK, "text/plain; version=0.0.4",
                                  &text);
}


static void
ngx_http_moe_prometheus_str(ngx_http_moe_text_t *text, const char *s)
{
    ngx_http_moe_text_add(text, s, ngx_strlen(s));
}


static void
ngx_http_moe_prometheus_type(ngx_http_moe_text_t *text, const char *name,
    const char *type, const char *help)
{
    ngx_http_moe_text_lit(text, "# HELP ");
    ngx_http_moe_prometheus_str(text, name);
    ngx_http_moe_text_lit(text, " ");
    ngx_http_moe_prometheus_str(text, help);
    ngx_http_moe_text_lit(text, "\n# TYPE ");
    ngx_http_moe_prometheus_str(text, name);
    ngx_http_moe_text_lit(text, " ");
    ngx_http_moe_prometheus_str(text, type);
    ngx_http_moe_text_lit(text, "\n");
}


/* Opens the labels: engine="main", or as the name's own world, which knows
 * models, calls it. */

static void
ngx_http_moe_prometheus_label(ngx_http_moe_text_t *text,
    ngx_http_moe_engine_t *engine, const char *name)
{
    ngx_str_t                value;
    ngx_http_moe_channel_t  *ch;

    value = engine->name;
    ch = NULL;

    if (ngx_strncmp(name, "vllm:", 5) == 0) {
        ngx_http_moe_text_lit(text, "{model_name=\"");
        ch = ngx_http_moe_balance_any(engine);

    } else if (ngx_strncmp(name, "gen_ai", 6) == 0) {
        ngx_http_moe_text_lit(text, "{gen_ai_provider_name=\"ngx_moe\","
                                    "gen_ai_request_model=\"");
        ch = ngx_http_moe_balance_any(engine);

    } else {
        ngx_http_moe_text_lit(text, "{engine=\"");
    }

    if (ch) {
        value.data = (u_char *) ch->welcome.model;
        value.len = ngx_strlen(ch->welcome.model);
    }

    ngx_http_moe_text_json(text, value.data, value.len);
    ngx_http_moe_text_lit(text, "\"");
}


static void
ngx_http_moe_prometheus_gauges(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf)
{
    uint64_t                 n, of;
    ngx_uint_t               i, k;
    ngx_http_moe_engine_t  **engine;

    static const struct {
        const char  *name;
        const char  *help;
        size_t       offset;
        size_t       of;                        /* 0: not a share */
    } gauges[] = {
        { "moe_requests_running", "Requests in the batch.",
          offsetof(struct abi_page, n_running), 0 },
        { "vllm:num_requests_running", "Requests in the batch.",
          offsetof(struct abi_page, n_running), 0 },
        { "moe_requests_waiting", "Requests that wait in the engine.",
          offsetof(struct abi_page, n_queued), 0 },
        { "vllm:num_requests_waiting", "Requests that wait in the engine.",
          offsetof(struct abi_page, n_queued), 0 },
        { "moe_kv_usage_ratio", "Share of the KV pages in use.",
          offsetof(struct abi_page, kv_pages_used),
          offsetof(struct abi_page, kv_pages) },
        { "vllm:kv_cache_usage_perc", "Share of the KV pages in use.",
          offsetof(struct abi_page, kv_pages_used),
          offsetof(struct abi_page, kv_pages) },
        { "moe_engine_steps", "Forward passes since the engine's start.",
          offsetof(struct abi_page, n_steps), 0 },
        { "moe_prompt_tokens_waiting", "Prompt tokens that wait.",
          offsetof(struct abi_page, n_queued_tok), 0 },
        { "vllm:prefix_cache_queries_total",
          "Prompt tokens looked up in the prefix cache.",
          offsetof(struct abi_page, n_prefix_queries_tok), 0 },
        { "vllm:prefix_cache_hits_total", "Of them tokens found there.",
          offsetof(struct abi_page, n_prefix_hits_tok), 0 },
        { "vllm:num_preemptions_total",
          "Times that a request had to give its pages back.",
          offsetof(struct abi_page, n_preemptions), 0 }
    };

    engine = mmcf->engines.elts;

    ngx_http_moe_prometheus_type(text, "moe_engines_ready", "gauge",
                                 "Engines that take requests.");

    for (k = 0; k < mmcf->engines.nelts; k++) {
        ngx_http_moe_text_lit(text, "moe_engines_ready");
        ngx_http_moe_prometheus_label(text, engine[k], "engine");
        ngx_http_moe_text_lit(text, "} ");
        ngx_http_moe_text_uint(text, ngx_http_moe_balance_ready(engine[k]));
        ngx_http_moe_text_lit(text, "\n");
    }

    for (i = 0; i < sizeof(gauges) / sizeof(gauges[0]); i++) {

        ngx_http_moe_prometheus_type(text, gauges[i].name,
                                     ngx_strstr(gauges[i].name, "_total")
                                     ? "counter" : "gauge", gauges[i].help);

        for (k = 0; k < mmcf->engines.nelts; k++) {
            n = ngx_http_moe_health_word(engine[k], gauges[i].offset);

            ngx_http_moe_prometheus_str(text, gauges[i].name);
            ngx_http_moe_prometheus_label(text, engine[k], gauges[i].name);
            ngx_http_moe_text_lit(text, "} ");

            if (gauges[i].of) {
                of = ngx_http_moe_health_word(engine[k], gauges[i].of);
                ngx_http_moe_prometheus_seconds(text, of ? n * 1000 / of : 0);

            } else {
                ngx_http_moe_text_uint(text, n);
            }

            ngx_http_moe_text_lit(text, "\n");
        }
    }
}


static void
ngx_http_moe_prometheus_counters(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf)
{
    ngx_uint_t               i, k;
    ngx_http_moe_engine_t  **engine;

    static const struct {
        const char  *name;
        const char  *help;
        size_t       offset;
    } counters[] = {
        { "moe_prompt_tokens_total", "Tokens of prompts.",
          offsetof(ngx_http_moe_stat_t, n_prompt) },
        { "vllm:prompt_tokens_total", "Tokens of prompts.",
          offsetof(ngx_http_moe_stat_t, n_prompt) },
        { "moe_cached_tokens_total",
          "Of them tokens found in the prefix cache.",
          offsetof(ngx_http_moe_stat_t, n_cached) },
        { "moe_completion_tokens_total", "Tokens generated.",
          offsetof(ngx_http_moe_stat_t, n_output) },
        { "vllm:generation_tokens_total", "Tokens generated.",
          offsetof(ngx_http_moe_stat_t, n_output) },
        { "moe_reasoning_tokens_total", "Of them tokens of reasoning.",
          offsetof(ngx_http_moe_stat_t, n_reasoning) },
        { "moe_delivered_tokens_total",
          "Tokens that clients have taken, of requests that are over.",
          offsetof(ngx_http_moe_stat_t, n_delivered) },
        { "moe_requests_resumed_total",
          "Times that a request went on at another engine.",
          offsetof(ngx_http_moe_stat_t, n_resumed) },
        { "moe_attached_total", "Handshakes with engines.",
          offsetof(ngx_http_moe_stat_t, n_attached) },
        { "moe_wakeups_total", "Times that a worker looked into its ring.",
          offsetof(ngx_http_moe_stat_t, n_wakeups) },
        { "moe_frames_total", "Events that it found there.",
          offsetof(ngx_http_moe_stat_t, n_frames) },
        { "moe_missed_wakeups_total",
          "Times that the clock found events which no bell had told.",
          offsetof(ngx_http_moe_stat_t, n_missed) },
        { "moe_late_frames_total", "Events of requests that were over.",
          offsetof(ngx_http_moe_stat_t, n_late) }
    };

    engine = mmcf->engines.elts;

    for (i = 0; i < sizeof(counters) / sizeof(counters[0]); i++) {

        ngx_http_moe_prometheus_type(text, counters[i].name, "counter",
                                     counters[i].help);

        for (k = 0; k < mmcf->engines.nelts; k++) {
            ngx_http_moe_prometheus_str(text, counters[i].name);
            ngx_http_moe_prometheus_label(text, engine[k], counters[i].name);
            ngx_http_moe_text_lit(text, "} ");
            ngx_http_moe_text_uint(text, *(ngx_atomic_t *)
                ((u_char *) engine[k]->stat + counters[i].offset));
            ngx_http_moe_text_lit(text, "\n");
        }
    }
}


static void
ngx_http_moe_prometheus_ends(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf)
{
    ngx_uint_t               i, k, n;
    ngx_http_moe_engine_t  **engine;

    static const struct {
        const char  *name;
        const char  *key;
        const char  *ends[NGX_HTTP_MOE_ENDS];
    } names[] = {
        { "moe_requests_total", "finish",
          { "stop", "length", "error", "cancelled" } },
        { "vllm:request_success_total", "finished_reason",
          { "stop", "length", "error", "abort" } }
    };

    engine = mmcf->engines.elts;

    for (n = 0; n < 2; n++) {

        ngx_http_moe_prometheus_type(text, names[n].name, "counter",
                                     "Requests that are over, by their end.");

        for (k = 0; k < mmcf->engines.nelts; k++) {
            for (i = 0; i < NGX_HTTP_MOE_ENDS; i++) {
                ngx_http_moe_prometheus_str(text, names[n].name);
                ngx_http_moe_prometheus_label(text, engine[k], names[n].name);
                ngx_http_moe_text_lit(text, ",");
                ngx_http_moe_prometheus_str(text, names[n].key);
                ngx_http_moe_text_lit(text, "=\"");
                ngx_http_moe_prometheus_str(text, names[n].ends[i]);
                ngx_http_moe_text_lit(text, "\"} ");
                ngx_http_moe_text_uint(text, engine[k]->stat->n_ends[i]);
                ngx_http_moe_text_lit(text, "\n");
            }
        }
    }
}


/* 1234: 1.234 */

static void
ngx_http_moe_prometheus_seconds(ngx_http_moe_text_t *text, uint64_t ms)
{
    u_char  *p, buf[NGX_INT64_LEN + 8];

    p = ngx_sprintf(buf, "%uL.%03uL", ms / 1000, ms % 1000);

    ngx_http_moe_text_add(text, buf, (size_t) (p - buf));
}


/* A row of the page: what is in it, and how it is written. */

enum {
    NGX_HTTP_MOE_SECONDS = 0,
    NGX_HTTP_MOE_NUMBERS,
    NGX_HTTP_MOE_USAGE
};

typedef struct {
    const char  *name;
    const char  *help;
    size_t       offset;                        /* in a kind */
    ngx_uint_t   unit;
    const char  *labels;                        /* more of them */
} ngx_http_moe_prometheus_row_t;


static void
ngx_http_moe_prometheus_value(ngx_http_moe_text_t *text, ngx_uint_t unit,
    uint64_t n)
{
    if (unit == NGX_HTTP_MOE_SECONDS) {
        ngx_http_moe_prometheus_seconds(text, n);

    } else {
        ngx_http_moe_text_uint(text, n);
    }
}


/* One series; `labels` is its labels, still open. */

static void
ngx_http_moe_prometheus_series(ngx_http_moe_text_t *text,
    const ngx_http_moe_prometheus_row_t *row, ngx_str_t *labels,
    const ngx_http_moe_histogram_t *h)
{
    uint64_t           n;
    ngx_uint_t         i, n_edges;
    const ngx_uint_t  *edges;

    edges = ngx_http_moe_edges;
    n_edges = NGX_HTTP_MOE_EDGES;

    if (row->unit == NGX_HTTP_MOE_USAGE) {
        edges = ngx_http_moe_powers;
        n_edges = NGX_HTTP_MOE_POWERS;
    }

    n = 0;

    for (i = 0; i <= n_edges; i++) {
        n += h->count[i];

        ngx_http_moe_prometheus_str(text, row->name);
        ngx_http_moe_text_lit(text, "_bucket");
        ngx_http_moe_text_add(text, labels->data, labels->len);
        ngx_http_moe_text_lit(text, ",le=\"");

        if (i < n_edges) {
            ngx_http_moe_prometheus_value(text, row->unit, edges[i]);

        } else {
            ngx_http_moe_text_lit(text, "+Inf");
        }

        ngx_http_moe_text_lit(text, "\"} ");
        ngx_http_moe_text_uint(text, n);
        ngx_http_moe_text_lit(text, "\n");
    }

    ngx_http_moe_prometheus_str(text, row->name);
    ngx_http_moe_text_lit(text, "_sum");
    ngx_http_moe_text_add(text, labels->data, labels->len);
    ngx_http_moe_text_lit(text, "} ");
    ngx_http_moe_prometheus_value(text, row->unit, h->sum);
    ngx_http_moe_text_lit(text, "\n");

    ngx_http_moe_prometheus_str(text, row->name);
    ngx_http_moe_text_lit(text, "_count");
    ngx_http_moe_text_add(text, labels->data, labels->len);
    ngx_http_moe_text_lit(text, "} ");
    ngx_http_moe_text_uint(text, n);
    ngx_http_moe_text_lit(text, "\n");
}


static void
ngx_http_moe_prometheus_sum(ngx_http_moe_histogram_t *to,
    const ngx_http_moe_histogram_t *h)
{
    ngx_uint_t  i;

    for (i = 0; i <= NGX_HTTP_MOE_EDGES; i++) {
        to->count[i] += h->count[i];
    }

    to->sum += h->sum;
}


/* OpenTelemetry's: a series for each kind that there has been. */

static void
ngx_http_moe_prometheus_kinds(ngx_http_moe_text_t *text,
    const ngx_http_moe_prometheus_row_t *row, ngx_http_moe_engine_t *engine)
{
    ngx_str_t                        s;
    ngx_uint_t                       i, k;
    ngx_http_moe_text_t              labels;
    const ngx_http_moe_histogram_t  *h;

    static const char  *kinds[NGX_HTTP_MOE_KINDS] = {
        ",gen_ai_operation_name=\"chat\"",
        ",gen_ai_operation_name=\"text_completion\"",
        ",gen_ai_operation_name=\"chat\",error_type=\"_OTHER\"",
        ",gen_ai_operation_name=\"text_completion\",error_type=\"_OTHER\""
    };

    for (k = 0; k < NGX_HTTP_MOE_KINDS; k++) {

        h = (ngx_http_moe_histogram_t *) ((u_char *) &engine->stat->kinds[k]
                                          + row->offset);

        for (i = 0; i < NGX_HTTP_MOE_EDGES && h->count[i] == 0; i++) {
            /* void */
        }

        if (k && h->count[i] == 0) {
            continue;
        }

        ngx_memzero(&labels, sizeof(ngx_http_moe_text_t));
        labels.pool = text->pool;

        ngx_http_moe_prometheus_label(&labels, engine, row->name);
        ngx_http_moe_prometheus_str(&labels, kinds[k]);
        ngx_http_moe_prometheus_str(&labels, row->labels);

        s.data = labels.start;
        s.len = ngx_http_moe_text_len(&labels);
        text->failed |= labels.failed;

        ngx_http_moe_prometheus_series(text, row, &s, h);
    }
}


static void
ngx_http_moe_prometheus_histogram(ngx_http_moe_text_t *text,
    const ngx_http_moe_prometheus_row_t *row, ngx_http_moe_engine_t *engine)
{
    ngx_str_t                 s;
    ngx_uint_t                k;
    ngx_http_moe_text_t       labels;
    ngx_http_moe_histogram_t  h;

    if (row->labels) {
        ngx_http_moe_prometheus_kinds(text, row, engine);
        return;
    }

    ngx_memzero(&h, sizeof(ngx_http_moe_histogram_t));

    for (k = 0; k < NGX_HTTP_MOE_KINDS; k++) {
        ngx_http_moe_prometheus_sum(&h, (ngx_http_moe_histogram_t *)
            ((u_char *) &engine->stat->kinds[k] + row->offset));
    }

    ngx_memzero(&labels, sizeof(ngx_http_moe_text_t));
    labels.pool = text->pool;

    ngx_http_moe_prometheus_label(&labels, engine, row->name);

    s.data = labels.start;
    s.len = ngx_http_moe_text_len(&labels);
    text->failed |= labels.failed;

    ngx_http_moe_prometheus_series(text, row, &s, &h);
}


static void
ngx_http_moe_prometheus_histograms(ngx_http_moe_text_t *text,
    ngx_http_moe_main_conf_t *mmcf)
{
    ngx_uint_t               i, k;
    ngx_http_moe_engine_t  **engine;

#define NGX_HTTP_MOE_ROW(name, help, field, unit, labels)                     \
    { name, help, offsetof(ngx_http_moe_kind_t, field), unit, labels }

#define NGX_HTTP_MOE_TIME(name, help, field)                                  \
    NGX_HTTP_MOE_ROW(name, help, field, NGX_HTTP_MOE_SECONDS, NULL)

#define NGX_HTTP_MOE_NUMBER(name, help, field)                                \
    NGX_HTTP_MOE_ROW(name, help, field, NGX_HTTP_MOE_NUMBERS, NULL)

#define NGX_HTTP_MOE_OTEL(name, help, field)                                  \
    NGX_HTTP_MOE_ROW(name, help, field, NGX_HTTP_MOE_SECONDS, "")

    static const ngx_http_moe_prometheus_row_t  rows[] = {
        NGX_HTTP_MOE_TIME("moe_first_token_seconds",
                          "From the request to its first token.",
                          first_token),
        NGX_HTTP_MOE_TIME("vllm:time_to_first_token_seconds",
                          "From the request to its first token.",
                          first_token),
        NGX_HTTP_MOE_OTEL("gen_ai_server_time_to_first_token_seconds",
                          "From the request to its first token.",
                          first_token),
        NGX_HTTP_MOE_TIME("moe_inter_token_seconds",
                          "Between two tokens of a request.", inter_token),
        NGX_HTTP_MOE_TIME("vllm:inter_token_latency_seconds",
                          "Between two tokens of a request.", inter_token),
        NGX_HTTP_MOE_OTEL("gen_ai_server_time_per_output_token_seconds",
                          "Between two tokens of a request.", inter_token),
        NGX_HTTP_MOE_TIME("moe_request_seconds",
                          "From the request to its end.", duration),
        NGX_HTTP_MOE_TIME("vllm:e2e_request_latency_seconds",
                          "From the request to its end.", duration),
        NGX_HTTP_MOE_OTEL("gen_ai_server_request_duration_seconds",
                          "From the request to its end.", duration),
        NGX_HTTP_MOE_OTEL("gen_ai_client_operation_duration_seconds",
                          "From the request to its end.", duration),
        NGX_HTTP_MOE_TIME("moe_queue_seconds",
                          "From the request to its admission.", queued),
        NGX_HTTP_MOE_TIME("vllm:request_queue_time_seconds",
                          "From the request to its admission.", queued),
        NGX_HTTP_MOE_TIME("moe_prefill_seconds",
                          "From the admission to the first token.", prefill),
        NGX_HTTP_MOE_TIME("vllm:request_prefill_time_seconds",
                          "From the admission to the first token.", prefill),
        NGX_HTTP_MOE_TIME("moe_decode_seconds",
                          "From the first token to the last.", decode),
        NGX_HTTP_MOE_TIME("vllm:request_decode_time_seconds",
                          "From the first token to the last.", decode),
        NGX_HTTP_MOE_TIME("vllm:request_inference_time_seconds",
                          "From the admission to the last token.", inference),
        NGX_HTTP_MOE_NUMBER("moe_request_prompt_tokens",
                            "Tokens of a request's prompt.", prompt),
        NGX_HTTP_MOE_NUMBER("vllm:request_prompt_tokens",
                            "Tokens of a request's prompt.", prompt),
        NGX_HTTP_MOE_NUMBER("moe_request_completion_tokens",
                            "Tokens generated for a request.", output),
        NGX_HTTP_MOE_NUMBER("vllm:request_generation_tokens",
                            "Tokens generated for a request.", output),
        NGX_HTTP_MOE_NUMBER("vllm:request_params_max_tokens",
                            "max_tokens of requests that have it.",
                            max_tokens),
        NGX_HTTP_MOE_NUMBER("vllm:request_params_n", "n of requests.",
                            choices),
        NGX_HTTP_MOE_ROW("gen_ai_client_token_usage", "Tokens of a request.",
                         input_usage, NGX_HTTP_MOE_USAGE,
                         ",gen_ai_token_type=\"input\""),
        NGX_HTTP_MOE_ROW("gen_ai_client_token_usage", NULL,
                         output_usage, NGX_HTTP_MOE_USAGE,
                         ",gen_ai_token_type=\"output\"")
    };

    engine = mmcf->engines.elts;

    for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {

        if (rows[i].help) {
            ngx_http_moe_prometheus_type(text, rows[i].name, "histogram",
                                         rows[i].help);
        }

        for (k = 0; k < mmcf->engines.nelts; k++) {
            ngx_http_moe_prometheus_histogram(text, &rows[i], engine[k]);
        }
    }
}

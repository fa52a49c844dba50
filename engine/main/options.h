/*
 * options.h - the command line of moe-engine: one table of all options
 * with their ranges, defaults and help.
 */
#ifndef MOE_MAIN_OPTIONS_H
#define MOE_MAIN_OPTIONS_H

#include "base.h"

#define MAIN_VERSION    "0.1.0"

struct main_options {
    const char *model;          /* directory */
    const char *socket;         /* NULL: systemd's */
    const char *socket_group;   /* NULL: left as it is */
    const char *name;           /* NULL: the directory's */
    const char *backend;
    const char *quant;
    const char *pack_cache;     /* NULL: none */
    const char *sandbox;        /* "auto", "on", "off" */
    const char *log_level;
    int64_t     socket_mode;
    int64_t     allow_uid;      /* -1: any */
    int64_t     threads;        /* 0: one per core */
    const char *pin;            /* "on", "off" */
    int64_t     max_seqs;
    int64_t     max_queue;
    int64_t     max_queue_tok;
    int64_t     no_prefix_cache;
    int64_t     max_batch_tok;
    int64_t     step_ms;
    int64_t     kv_bytes;       /* 0: as the model plans */
    int64_t     n_ctx_tok;      /* 0: the model's */
    int64_t     random_seed;    /* -1: real weights */
    int64_t     drain_s;
    int64_t     deterministic;
    int64_t     replace;
    int64_t     help;
    int64_t     version;
};

/* 0; -1: e says which option, expected and got. */
int main_options_parse(struct main_options *o, int argc, char **argv,
                       struct err *e);

/* What --help says. */
int main_options_help(struct buf *out);

#endif /* MOE_MAIN_OPTIONS_H */

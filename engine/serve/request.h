/*
 * request.h - the bytes of a request, as a worker has put them into its
 * ring, to a request whose every field is in range.  The worker has checked
 * them too; the engine does not believe it.
 *
 * Pure: no clock, no I/O, no state.  Must not know jobs or rings.
 */
#ifndef MOE_SERVE_REQUEST_H
#define MOE_SERVE_REQUEST_H

#include "abi.h"
#include "base.h"

#define SERVE_STOP_BYTES    1024    /* of one stop string */

/* Why a request gets no answer: what becomes its ERROR event. */
struct serve_refusal {
    uint32_t    code;           /* enum abi_error_code; 0: not refused */
    uint32_t    retry_after_s;
    const char *param;          /* static; "" where no parameter is at fault */
    struct err  err;
};

/* Fills the refusal but for its text; returns the err to be filled. */
struct err *serve_refusal_set(struct serve_refusal *why, uint32_t code,
                              const char *param);

/* What an engine before this one has said of a choice. */
struct serve_resume {
    struct abi_resume   abi;
    const char         *ids;    /* abi.n_tok * uint32_t, unaligned */
};

struct serve_request {
    struct abi_request  abi;    /* ungiven parameters are not yet defaulted */
    struct slice        body;   /* this and below: borrowed from the bytes */
    const char         *biases; /* abi.n_biases * struct abi_bias, unaligned */
    struct slice        stops[ABI_STOPS_MAX];
    struct slice        salt;
    struct serve_resume resumes[ABI_CHOICES_MAX];   /* zeros: from the start */
};

/* 0; -1: why. */
int serve_request_parse(const char *p, size_t n, uint32_t n_vocab,
                        struct serve_request *r, struct serve_refusal *why);

/* The i-th bias. */
struct abi_bias serve_request_bias(const struct serve_request *r, uint32_t i);

#endif /* MOE_SERVE_REQUEST_H */

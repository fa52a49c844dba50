/* Any bytes as a request: what is accepted is in range. */
#include "serve/request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct serve_request r;
    struct serve_refusal why;
    uint32_t             n_bytes = (uint32_t) n;
    char                *copy = malloc(n > 0 ? n : 1);

    if (copy == NULL) {
        return 0;
    }

    memcpy(copy, p, n);

    /* The length is easy to get right: so it always is. */
    if (n >= sizeof(n_bytes)) {
        memcpy(copy, &n_bytes, sizeof(n_bytes));
    }

    if (serve_request_parse(copy, n, 1000, &r, &why) == 0) {
        size_t sum = r.body.n;

        for (uint32_t i = 0; i < r.abi.n_biases; i++) {
            sum += serve_request_bias(&r, i).token;
        }

        for (uint32_t i = 0; i < r.abi.n_stops; i++) {
            sum += (uint8_t) r.stops[i].p[r.stops[i].n - 1];
        }

        for (size_t i = 0; i < r.salt.n; i++) {
            sum += (uint8_t) r.salt.p[i];
        }

        if (r.salt.n > ABI_SALT_MAX || r.abi.n_choices < 1
            || r.abi.n_choices > ABI_CHOICES_MAX
            || sum > UINT32_MAX * 2048ULL)
        {
            abort();
        }
    } else if (why.code == 0 || why.param == NULL || why.err.text[0] == '\0') {
        abort();
    }

    free(copy);

    return 0;
}

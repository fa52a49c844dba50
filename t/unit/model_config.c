/*
 * model_config.c - config.json of the families with grouped-query attention:
 * what is derived from it, and what is refused, in which words.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/family.h"

#define SHAPE                                                                 \
    "'vocab_size': 100, 'hidden_size': 64, 'num_hidden_layers': 4, "          \
    "'num_attention_heads': 4, 'max_position_embeddings': 1000, "             \
    "'num_experts': 8, 'num_experts_per_tok': 2"
#define QWEN3                                                                 \
    "{'model_type': 'qwen3_moe', " SHAPE ", 'moe_intermediate_size': 24"
#define OLMOE                                                                 \
    "{'model_type': 'olmoe', " SHAPE ", 'intermediate_size': 24"
#define MIXTRAL                                                               \
    "{'model_type': 'mixtral', " SHAPE ", 'intermediate_size': 24"

static const struct {
    const char *json;
    const char *error;
} refused[] = {
    { QWEN3 ", 'num_key_value_heads': 3}",
      "num_key_value_heads: expected a divisor of 4 heads, got 3" },
    { QWEN3 ", 'head_dim': 24}",
      "head_dim: expected a multiple of 16, got 24" },
    { QWEN3 ", 'use_sliding_window': true, 'sliding_window': 4096}",
      "sliding_window: attention over a window is not supported" },
    { QWEN3 ", 'mlp_only_layers': [2]}",
      "intermediate_size: expected it, since layer 2 has no experts" },
    { QWEN3 ", 'mlp_only_layers': [0, -1]}",
      "mlp_only_layers: expected integers of 0 .. 1023, got another at 1" },
    { QWEN3 ", 'mlp_only_layers': [1024]}",
      "mlp_only_layers: expected integers of 0 .. 1023, got another at 0" },
    { QWEN3 ", 'mlp_only_layers': ['a']}",
      "mlp_only_layers: expected integers of 0 .. 1023, got another at 0" },
    { QWEN3 ", 'attention_bias': true}",
      "attention_bias: true is not supported" },
    { QWEN3 ", 'num_experts': 1}",
      "num_experts_per_tok: expected at most 1, got 2" },
    { OLMOE ", 'clip_qkv': 8.5}", "clip_qkv: expected null, got 8.5" },
    { MIXTRAL ", 'sliding_window': 999}",
      "sliding_window: attention over a window is not supported" },
    { "{'model_type': 'qwen3'}",
      "model_type \"qwen3\" is not supported: it has no experts" }
};


static int
read_config(const char *text, struct config *c, struct err *e)
{
    char                 json[1024];
    const struct family *f;

    assert_true(strlen(text) < sizeof(json));
    strcpy(json, text);

    for (char *p = json; (p = strchr(p, '\'')) != NULL; ) {
        *p = '"';
    }

    json_t *o = json_loads(json, 0, NULL);

    assert_non_null(o);

    int rc = config_read(o, c, &f, e);

    json_decref(o);

    return rc;
}


static void
test_refused(void **state)
{
    (void) state;

    for (size_t i = 0; i < BASE_COUNT(refused); i++) {
        struct config c;
        struct err    e = { "" };

        assert_int_equal(read_config(refused[i].json, &c, &e), -1);
        assert_string_equal(e.text, refused[i].error);
    }
}


static void
test_derived(void **state)
{
    struct config c;
    struct err    e = { "" };

    (void) state;

    assert_int_equal(read_config(QWEN3 ", 'num_key_value_heads': 2, "
                                 "'head_dim': 32, 'sliding_window': 4096, "
                                 "'intermediate_size': 100}", &c, &e), 0);
    assert_int_equal(c.kv_row, 128);
    assert_int_equal(c.rope, 32);
    assert_int_equal(c.mlp_width, 0);       /* no layer is dense */

    assert_int_equal(read_config(QWEN3 ", 'decoder_sparse_step': 2, "
                                 "'intermediate_size': 100}", &c, &e), 0);
    assert_int_equal(c.head, 16);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.mlp_width, 100);

    assert_int_equal(read_config(MIXTRAL ", 'sliding_window': 1000}", &c, &e),
                     0);
    assert_int_equal(c.norm_topk, 1);
    assert_int_equal(read_config(OLMOE ", 'clip_qkv': null}", &c, &e), 0);
    assert_int_equal(c.norm_topk, 0);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_derived)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}

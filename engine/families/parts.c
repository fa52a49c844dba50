/*
 * parts.c - see parts.h.
 */
#include "families/parts.h"

#include <string.h>


int
parts_check(struct config *c, struct err *e)
{
    if (c->attention_bias || c->mlp_bias) {
        return err_set(e, "%s: true is not supported",
                       c->attention_bias ? "attention_bias" : "mlp_bias");
    }

    if (strcmp(c->activation, "silu") != 0) {
        return err_set(e, "hidden_act: expected \"silu\", got \"%s\"",
                       c->activation);
    }

    int yarn = strcmp(c->rope_type, "yarn") == 0;

    if (!yarn && strcmp(c->rope_type, "default") != 0) {
        return err_set(e, "rope_type: expected default or yarn, got \"%s\"",
                       c->rope_type);
    }

    if (yarn && c->factor <= 0 && c->orig_pos == 0) {
        return err_set(e, "rope_scaling: yarn needs a factor");
    }

    if (yarn && c->orig_pos == 0) {
        c->orig_pos = c->max_pos;
    }

    if (yarn && c->factor <= 0) {
        c->factor = (double) c->max_pos / c->orig_pos;
    }

    return 0;
}


void
parts_mlp(struct step *s, const struct layer *w)
{
    struct backend           *b = s->b;
    const struct backend_ops *op = b->ops;
    const struct buffers     *t = &s->buf;

    op->linear(b, t->gate, t->h, &w->gate, s->n_tok, 0);
    op->linear(b, t->up, t->h, &w->up, s->n_tok, 0);
    op->silu_mul(b, t->gate, t->gate, t->up, s->n_tok, w->gate.n_out);
    op->linear(b, t->x, t->gate, &w->down, s->n_tok, 1);
}


void
parts_experts(struct step *s, const struct layer *w, struct route how)
{
    struct backend           *b = s->b;
    const struct backend_ops *op = b->ops;
    const struct config      *c = s->c;
    const struct buffers     *t = &s->buf;

    how.ids = s->expert_ids;
    how.weights = s->expert_weights;
    how.logits = t->scores;
    how.n_rows = s->n_tok;
    how.n_experts = c->n_experts;
    how.n_active = c->n_active;
    how.norm = c->norm_topk;

    op->linear(b, t->scores, t->h, &w->router, s->n_tok, 0);
    op->route(b, &how);
    op->moe(b, &(struct moe) {
        .y = t->x, .x = t->h, .ids = s->expert_ids,
        .weights = s->expert_weights, .gate = &w->e_gate, .up = &w->e_up,
        .down = &w->e_down, .tmp_gate = t->e_gate, .tmp_up = t->e_up,
        .tmp_down = t->e_down, .tmp_order = s->expert_order,
        .n_rows = s->n_tok, .n_active = c->n_active });
}

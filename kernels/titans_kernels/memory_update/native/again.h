/* What the walk back works with, and the walk forward again between two states that were kept.

Then each piece goes back: its queries, its next state, its keys, as the op's README derives it. `d_` stands
for a gradient. */

typedef struct {
    real *sums[MOST_LAYERS], *backs[MOST_LAYERS]; /* Z_l of all layers but the last; D_l W_l, by l */
    real *memory[MOST_LAYERS], *surprise[MOST_LAYERS];
} Slot; /* what a piece begins with, and what its keys left */

typedef struct {
    Work w;
    Slot *slots;
    real *d_memory[MOST_LAYERS], *d_surprise[MOST_LAYERS], *d_base[MOST_LAYERS], *d_held[MOST_LAYERS];
    real *d_x[MOST_LAYERS], *d_error[MOST_LAYERS]; /* by inputs and errors of the keys */
    real *d_sum[MOST_LAYERS], *d_back[MOST_LAYERS]; /* by Z_l and by D_l W_l */
    real *d_read[MOST_LAYERS]; /* by Z_l of the queries */
    real *d_weight[MOST_LAYERS], *d_step[MOST_LAYERS], *d_first[MOST_LAYERS], *d_past[MOST_LAYERS];
    real *d_ends[MOST_LAYERS], *d_last[MOST_LAYERS], *d_mix[MOST_LAYERS];
    real d_decay[MOST_LAYERS][3];
    real *read_narrow[MOST_LAYERS]; /* narrow side of what queries owe the state [tokens, narrow] */
    real *turned[MOST_LAYERS]; /* of what the keys owe it, where it is not at hand */
    real *third; /* scratch as left and right */
    real *d_score, *turned_square, *dy, *d_q, *outer;
    real *factor, *kept_rows, *share_rows;
    real *d_gain, *d_bias;
} Back;

static void place_backward(Back *b, Arena *arena, const Call *call)
{
    memset(b, 0, sizeof *b);
    place_work(&b->w, arena, call);
    Work *w = &b->w;
    long most = w->most, across = padded(most), width = call->width, narrowest = 0;
    for (long l = 0; l < w->layers; l++) {
        const Layer *layer = &w->layer[l];
        real **parts[] = {&b->d_memory[l], &b->d_surprise[l], &b->d_base[l], &b->d_held[l]};
        for (int i = 0; i < 4; i++)
            *parts[i] = take(arena, layer->area);
        real **rows[] = {&b->d_weight[l], &b->d_step[l], &b->d_first[l], &b->d_past[l],
            &b->d_ends[l], &b->d_last[l]};
        for (int i = 0; i < 6; i++)
            *rows[i] = take(arena, across);
        b->d_mix[l] = take(arena, most * across);
        b->d_x[l] = take(arena, layer->in * across);
        b->d_back[l] = l ? take(arena, layer->in * across) : NULL;
        w->bend[l] = l ? take(arena, layer->in * across) : NULL;
        w->r_slope[l] = l ? take(arena, layer->in * across) : NULL;
        b->d_error[l] = take(arena, layer->out * across);
        b->d_sum[l] = take(arena, layer->out * across);
        b->d_read[l] = take(arena, layer->out * across);
        b->read_narrow[l] = take(arena, area(most, layer->narrow));
        b->turned[l] = take(arena, area(most, layer->narrow));
        narrowest = layer->narrow > narrowest ? layer->narrow : narrowest;
    }
    b->third = take(arena, area(most, narrowest));
    b->d_score = take(arena, most * across);
    b->turned_square = take(arena, most * across);
    b->dy = take(arena, width * across);
    b->d_q = take(arena, width * across);
    b->outer = take(arena, width * across);
    b->factor = take(arena, across);
    b->kept_rows = take(arena, (most + 1) * PANEL);
    b->share_rows = take(arena, (most + 1) * PANEL);
    b->d_gain = take(arena, width);
    b->d_bias = take(arena, width);
    size_t slots = arena->used;
    take(arena, (long)(call->every * sizeof(Slot) / sizeof(real) + 1));
    b->slots = arena->block ? (Slot *)(arena->block + slots) : NULL;
    for (long n = 0; n < call->every; n++) {
        Slot scratch, *slot = b->slots ? &b->slots[n] : &scratch;
        for (long l = 0; l < w->layers; l++) {
            const Layer *layer = &w->layer[l];
            slot->memory[l] = take(arena, layer->area);
            slot->surprise[l] = take(arena, layer->area);
            slot->sums[l] = l < w->layers - 1 ? take(arena, layer->out * across) : NULL;
            slot->backs[l] = l ? take(arena, layer->in * across) : NULL;
        }
    }
}

static void restart(Work *w, real *const *memory, real *const *surprise)
{
    read_state(w, &w->call->start_memory, memory);
    read_state(w, &w->call->start_surprise, surprise);
}

static void take_up(Work *w, const Slot *slot, long n)
{
    for (long l = 0; l < w->layers; l++) {
        w->memory[l] = slot->memory[l];
        w->surprise[l] = slot->surprise[l];
    }
    if (opens(w, n)) {
        hold(w, w->memory);
    } else if (w->written) {
        read_state(w, &w->call->held, w->room);
        hold(w, w->room);
    }
}

/* The pieces from the kept one `first` to before `end`: their states, and what their keys leave. */
static void walk_again(Back *b, long first, long end)
{
    Work *w = &b->w;
    real *kept = state_at(w, first);
    for (long l = 0; l < w->layers; l++) {
        size_t area = w->layer[l].area;
        memcpy(b->slots[0].memory[l], kept, area * sizeof(real));
        memcpy(b->slots[0].surprise[l], kept + area, area * sizeof(real));
        kept += 2 * area;
    }
    for (long n = first; n < end; n++) {
        Slot *slot = &b->slots[n - first];
        enter_piece(w, n);
        if (n > first && begins_document(w))
            restart(w, slot->memory, slot->surprise);
        if (w->written) {
            take_up(w, slot, n);
            weigh_all(w);
            read_keys(w);
            for (long l = 0; l < w->layers - 1; l++) {
                through(slot->sums[l], w->matrix[l], &w->layer[l], 0, w->x[l], w, 0);
                activate_with_slope(w->x[l + 1], w->slope[l + 1], NULL, slot->sums[l],
                    w->layer[l].out * padded(w->tokens), (int)w->call->silu);
            }
            memcpy(w->sum, sums_at(w, n), w->call->width * padded(w->tokens) * sizeof(real));
            errors_back(w, slot->backs, 0);
        }
        if (n + 1 == end)
            break;
        Slot *after = slot + 1;
        if (w->written) {
            advance(w, slot->memory, slot->surprise, after->memory, after->surprise, 0);
            continue;
        }
        for (long l = 0; l < w->layers; l++) {
            memcpy(after->memory[l], slot->memory[l], w->layer[l].area * sizeof(real));
            memcpy(after->surprise[l], slot->surprise[l], w->layer[l].area * sizeof(real));
        }
    }
}

/* Puts a piece back to where its forward was before its next state. */
static void restore(Back *b, const Slot *slot, long n)
{
    Work *w = &b->w;
    const Call *call = w->call;
    enter_piece(w, n);
    take_up(w, slot, n);
    weigh_all(w);
    size_t width = call->width * padded(w->tokens);
    const real *sums = sums_at(w, n);
    if (w->written) {
        read_keys(w);
        for (long l = 0; l < w->layers - 1; l++)
            activate_with_slope(w->x[l + 1], w->slope[l + 1], w->bend[l + 1], slot->sums[l],
                w->layer[l].out * padded(w->tokens), (int)call->silu);
        memcpy(w->sum, sums, width * sizeof(real));
        errors_back(w, slot->backs, 1);
    }
    read_tokens(w->r[0], &call->q, w, 0);
    for (long l = 0; l < w->layers - 1; l++) {
        read_layer(w, l, w->wide);
        activate_with_slope(w->r[l + 1], w->r_slope[l + 1], NULL, w->wide,
            w->layer[l].out * padded(w->tokens), (int)call->silu);
    }
    if (w->written)
        mix_scores(w, w->layers - 1);
    memcpy(w->read_sum, sums + width, width * sizeof(real));
}

/* Back over the pieces of one row and head, from the last to the first. */

static void write_tokens(const View *to, const real *x, const Work *w)
{
    long width = w->call->width;
    real *out = to->data + w->batch * to->batch + w->begin * to->time + w->head * to->head;
    for (long t = 0; t < w->tokens; t++)
        for (long d = 0; d < width; d++)
            out[t * to->time + d] = x[place(width, d, t)];
}

static void piece_back(Back *b, Slot *slot, long n)
{
    Work *w = &b->w;
    restore(b, slot, n);
    for (long l = 1; l < w->layers; l++)
        w->wide_backs[l] = slot->backs[l];
    queries_back(b);
    write_tokens(&w->call->d_q, b->d_q, w);
    if (w->written) {
        for (long l = 0; l < w->layers; l++) {
            advance_back(b, l);
            clamp_back(b, l);
        }
        keys_back(b);
        write_tokens(&w->call->d_k, b->d_x[0], w);
        write_tokens(&w->call->d_v, b->dy, w);
    }
    for (long l = 0; l < w->layers; l++) {
        state_back(b, l, w->written && !opens(w, n));
        gates_back(b, l);
    }
}

static void add_state(const Weights *to, real *const *from, Back *b)
{
    Work *w = &b->w;
    for (long l = 0; l < w->layers; l++) {
        const Layer *layer = &w->layer[l];
        read_matrix(w->room[l], layer, to, l, w->row, w->call->heads);
        for (long i = 0; i < layer->area; i += LANES)
            *(vec *)(w->room[l] + i) += *(const vec *)(from[l] + i);
        write_matrix(to, w->room[l], layer, l, w->row, w->call->heads);
    }
}

static void clear_state(const Work *w, real *const *state)
{
    for (long l = 0; l < w->layers; l++)
        memset(state[l], 0, w->layer[l].area * sizeof(real));
}

/* Before piece n: what else its first memory was used for, and where it came from. */
static void leave_piece(Back *b, long n, long last)
{
    Work *w = &b->w;
    const Call *call = w->call;
    if (n == last) {
        read_state(w, &call->d_last_held, w->room);
        for (long l = 0; l < w->layers; l++)
            for (long i = 0; i < w->layer[l].area; i += LANES)
                *(vec *)(b->d_memory[l] + i) += *(vec *)(w->room[l] + i);
    }
    if (begins_document(w)) {
        add_state(&call->d_start_memory, b->d_memory, b);
        add_state(&call->d_start_surprise, b->d_surprise, b);
        clear_state(w, b->d_memory);
        clear_state(w, b->d_surprise);
    }
}

static void backward_row(Back *b, long row)
{
    Work *w = &b->w;
    const Call *call = w->call;
    enter_row(w, row);
    long last = last_opening(w), pieces = pieces_of(call, w->batch);
    read_state(w, &call->d_last_memory, b->d_memory);
    read_state(w, &call->d_last_surprise, b->d_surprise);
    clear_state(w, b->d_base);
    if (last < 0)
        read_state(w, &call->d_last_held, b->d_held);
    else
        clear_state(w, b->d_held);
    memset(b->d_gain, 0, call->width * sizeof(real));
    memset(b->d_bias, 0, call->width * sizeof(real));
    for (long first = (pieces - 1) / call->every * call->every; first >= 0; first -= call->every) {
        long end = least(first + call->every, pieces);
        walk_again(b, first, end);
        for (long n = end - 1; n >= first; n--) {
            piece_back(b, &b->slots[n - first], n);
            leave_piece(b, n, last);
        }
    }
    write_state(w, &call->d_memory, b->d_memory);
    write_state(w, &call->d_surprise, b->d_surprise);
    write_state(w, &call->d_held, b->d_held);
    if (call->toward_initial)
        write_state(w, &call->d_base, b->d_base);
    if (call->gain) {
        memcpy(call->d_gain + row * call->width, b->d_gain, call->width * sizeof(real));
        memcpy(call->d_bias + row * call->width, b->d_bias, call->width * sizeof(real));
    }
}

static void backward_thread(const void *given, char *workspace, atomic_long *next)
{
    const Call *call = given;
    Back b;
    Arena arena = {workspace, 0};
    place_backward(&b, &arena, call);
    for (long row; (row = atomic_fetch_add(next, 1)) < call->rows * call->heads;)
        backward_row(&b, row);
}

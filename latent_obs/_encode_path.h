/* The loops of one path; _encode.c includes this file once for each, after defining
 *
 *   NAME(function)   the path's name for a function
 *   TARGET           the instructions that its functions may use
 *   Input, Weight    types of a convolution's inputs and weights, as they lie in memory
 *   STEP, HEAD_STEP  inputs that one instruction multiplies and adds up
 *   Sums, LANES      a vector of int32 sums, and how many there are in it
 *   SUMS             how many such vectors fit the registers
 *   MOST_VECTORS     how many of them, at most, are one output's
 *   Inputs           STEP inputs, read as one number
 *   ADD, ADD_HEAD    sums += inputs * weights, for a convolution and for the head
 *   REQUANTISE       requantise() or what does the same
 */

/* Copy the marked rows of a frame into the middle of a picture whose border is zero. */
TARGET static void
NAME(pad)(const uint8_t *frame, const Mask *mask, void *padded)
{
    for (int y = 0; y < SIDE; y++) {
        Input *to = (Input *)padded + ((y + 1) * (SIDE + 2) + 1) * 3;
        if (mask->row[y])
            for (int x = 0; x < SIDE * 3; x++)
                to[x] = (Input)frame[y * SIDE * 3 + x];
    }
}

/* Compute `positions` neighbouring outputs of `vectors` * LANES channels. Both are constants where this is
 * called, so that `sums` stays in registers. */
TARGET INLINE void
NAME(block)(const Layer *layer, const Input *in, int channel, int32_t *result, const int positions,
            const int vectors)
{
    const int run = 4 * layer->before; /* inputs in one row of the kernel, which lie side by side */
    const int pitch = 2 * (layer->side + 1) * layer->before; /* inputs in a row of the picture */
    const Weight *weight = (const Weight *)layer->weight + channel * STEP;
    Sums sums[SUMS];
#if defined(__GNUC__)
#pragma GCC unroll 16
#endif
    for (int p = 0; p < positions; p++)
#if defined(__GNUC__)
#pragma GCC unroll 16
#endif
        for (int v = 0; v < vectors; v++)
            memcpy(&sums[p * vectors + v], layer->bias + channel + v * LANES, sizeof(Sums));
    for (int row = 0; row < 4; row++, in += pitch)
        for (int k = 0; k < run; k += STEP, weight += layer->after * STEP)
#if defined(__GNUC__)
#pragma GCC unroll 16
#endif
            for (int p = 0; p < positions; p++) {
                Inputs inputs;
                memcpy(&inputs, in + p * 2 * layer->before + k, sizeof inputs);
#if defined(__GNUC__)
#pragma GCC unroll 16
#endif
                for (int v = 0; v < vectors; v++)
                    ADD(sums[p * vectors + v], inputs, weight + v * LANES * STEP);
            }
    memcpy(result, sums, (size_t)(positions * vectors) * sizeof(Sums));
}

/* Compute the outputs that are marked; neighbours may be computed along with them. */
TARGET static void
NAME(convolve)(const Layer *layer, const void *in, void *out, const Mask *mask)
{
    int vectors = MOST_VECTORS;
    while (layer->after % (vectors * LANES))
        vectors /= 2;
    int positions = SUMS / vectors < 8 ? SUMS / vectors : 8;
    while (positions > layer->side)
        positions /= 2;
    const int border = !layer->last, edge = layer->side + 2 * border, channels = vectors * LANES;
    for (int y = 0; y < layer->side; y++)
        for (int x = 0; x < layer->side && mask->row[y] >> x; x++) {
            if (!(mask->row[y] >> x & 1))
                continue;
            if (x > layer->side - positions)
                x = layer->side - positions;
            const Input *corner = (const Input *)in + (2 * y * 2 * (layer->side + 1) + 2 * x) * layer->before;
            for (int channel = 0; channel < layer->after; channel += channels) {
                int32_t sums[SUMS * LANES];
                /* AT_MOST keeps a case that a path never takes within its registers. */
#define AT_MOST(positions, vectors) ((positions) * (vectors) <= SUMS ? (positions) : 1)
#define BLOCK(positions, vectors)                                                          \
    case (vectors) * 16 + (positions):                                                     \
        NAME(block)(layer, corner, channel, sums, AT_MOST(positions, vectors),             \
                    (vectors) <= SUMS ? (vectors) : 1);                                    \
        break
                switch (vectors * 16 + positions) {
                    BLOCK(4, 4);
                    BLOCK(2, 4);
                    BLOCK(1, 4);
                    BLOCK(8, 2);
                    BLOCK(4, 2);
                    BLOCK(2, 2);
                    BLOCK(1, 2);
                    BLOCK(8, 1);
                    BLOCK(4, 1);
                    BLOCK(2, 1);
                    BLOCK(1, 1);
                }
#undef BLOCK
#undef AT_MOST
                for (int p = 0; p < positions; p++)
                    for (int g = 0; g < channels; g += GROUP) {
                        int to = ((y + border) * edge + x + p + border) * layer->after + channel + g;
                        REQUANTISE(sums + p * channels + g, layer, channel + g, sizeof(Input), out, to);
                    }
            }
            x += positions - 1;
        }
}

/* Add to the head's sums what `count` positions contribute. */
TARGET static void
NAME(head)(const Network *network, const int16_t *differences, const int *where, int count, int32_t *sums)
{
    enum { VECTORS = HEAD_GROUP / LANES };
    for (int first = 0; first < network->padded_outputs; first += HEAD_GROUP) {
        Sums total[VECTORS];
        memcpy(total, sums + first, sizeof total);
        for (int i = 0; i < count; i++) {
            const int16_t *in = differences + i * network->features;
            const int16_t *weight =
                network->head + (size_t)where[i] * (size_t)network->features * (size_t)network->padded_outputs;
            weight += first * HEAD_STEP;
            for (int k = 0; k < network->features; k += HEAD_STEP, weight += network->padded_outputs * HEAD_STEP) {
                Inputs inputs;
                memcpy(&inputs, in + k, sizeof inputs);
                for (int v = 0; v < VECTORS; v++)
                    ADD_HEAD(total[v], inputs, weight + v * LANES * HEAD_STEP);
            }
        }
        memcpy(sums + first, total, sizeof total);
    }
}

#undef NAME
#undef TARGET
#undef Input
#undef Weight
#undef STEP
#undef HEAD_STEP
#undef LANES
#undef SUMS
#undef MOST_VECTORS
#undef Sums
#undef Inputs
#undef ADD
#undef ADD_HEAD
#undef REQUANTISE

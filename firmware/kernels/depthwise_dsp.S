/* Depthwise convolutions of one channel, four outputs of a row at a time, for cores with the DSP extension.
 *
 * Rows of pixels and of weights are read as pairs of int16. An output that starts at an even pixel takes weights
 * (0, 1), (2, 3), ... and the last of an odd number; one that starts at an odd pixel takes weight 0 and (1, 2),
 * (3, 4), ... A row of weights is therefore held as all pairs of neighbours, (0, 1), (1, 2), (2, 3), ... */
#if defined(__ARM_FEATURE_DSP)
    .syntax unified
    .altmacro
    .thumb
    .text

.macro function name
    .global \name
    .type \name, %function
    .balign 4
\name:
.endm

/* (x * multiplier >> 31 rounded up at halves), / 2^(shift + 1) rounded away at halves, + zero point, int8.
 * multiplier: 2^32 less than twice the layer's, which is at least 2^30. round: 2 * zero point + 1. */
.macro requantize x, multiplier, shift, round
    smmlar \x, \x, \multiplier, \x
    add.w \x, \x, \x, asr #31
    asr.w \x, \x, \shift
    add.w \x, \x, \round
    ssat \x, #8, \x, asr #1
.endm

/* 3x3. Registers: r0-r2 rows, r3 out, r4-r7 sums, r8 and r9 weights (0, 1) and (1, 2) of a row, r10-r12 pixels,
 * lr fours of outputs left in the row. */
    .set WEIGHTS, 0    /* three rows of two words; below: ms_depthwise_channel without its last fields */
    .set BIAS, 24
    .set MULTIPLIER, 28
    .set SHIFT, 32
    .set ROUND, 36
    .set STEP, 40
    .set FOURS, 44
    .set LEFT, 48
    .set SKIP, 52
    .set END, 56
    .set FRAME, 60

/* A row's products of four outputs; `from` is what is added to. */
.macro row_1 in, weights, from5, from6, from7, from4
    ldrd r8, r9, [sp, #\weights]
    ldrd r10, r11, [\in], #8
    ldr r12, [\in]
    smlatb r5, r10, r8, \from5
    smlad r6, r11, r8, \from6
    smlatb r7, r11, r8, \from7
    smlad r4, r10, r8, \from4
    smlad r5, r11, r9, r5
    smlad r7, r12, r9, r7
    smlabt r4, r11, r9, r4
    smlabt r6, r12, r9, r6
.endm

.macro row_2 in, weights, from5, from6, from7, from4
    ldrd r8, r9, [sp, #\weights]
    ldrd r10, r11, [\in], #16
    ldr r12, [\in, #-8]
    smlad r5, r11, r8, \from5
    smlad r6, r12, r8, \from6
    smlabt r5, r12, r9, r5
    ldr r12, [\in, #-4]
    smlad r7, r12, r8, \from7
    smlad r4, r10, r8, \from4
    ldr r10, [\in]
    smlabt r6, r12, r9, r6
    smlabt r4, r11, r9, r4
    smlabt r7, r10, r9, r7
.endm

/* Of two outputs. */
.macro pair_1 in, weights, from5, from4
    ldrd r8, r9, [sp, #\weights]
    ldr r10, [\in], #4
    ldr r11, [\in]
    smlatb r5, r10, r8, \from5
    smlad r4, r10, r8, \from4
    smlad r5, r11, r9, r5
    smlabt r4, r11, r9, r4
.endm

.macro pair_2 in, weights, from5, from4
    ldrd r8, r9, [sp, #\weights]
    ldrd r10, r11, [\in], #8
    ldr r12, [\in]
    smlad r5, r11, r8, \from5
    smlad r4, r10, r8, \from4
    smlabt r5, r12, r9, r5
    smlabt r4, r11, r9, r4
.endm

/* void name(const ms_depthwise_channel *channel, const int16_t *copy, const int8_t *weights, int8_t *out) */
.macro depthwise_3x3 name, row, pair
    function \name
    push {r4-r11, lr}
    sub sp, sp, #FRAME
    ldrsb r4, [r2]
    ldrsb r5, [r2, #1]
    ldrsb r6, [r2, #2]
    ldrsb r7, [r2, #3]
    ldrsb r8, [r2, #4]
    ldrsb r9, [r2, #5]
    ldrsb r10, [r2, #6]
    ldrsb r11, [r2, #7]
    ldrsb r12, [r2, #8]
    pkhbt r4, r4, r5, lsl #16
    pkhbt r5, r5, r6, lsl #16
    pkhbt r6, r7, r8, lsl #16
    pkhbt r7, r8, r9, lsl #16
    pkhbt r8, r10, r11, lsl #16
    pkhbt r9, r11, r12, lsl #16
    stm sp, {r4-r9}
    ldm r0, {r4-r12, lr}
    add r12, r12, r1
    add r2, sp, #BIAS
    stm r2, {r4-r12}
    mov r0, r1
    add r1, r0, lr
    add r2, r1, lr
1:  ldr lr, [sp, #FOURS]
    cmp lr, #0
    beq 4f
2:  ldr r4, [sp, #BIAS]
    \row r0, WEIGHTS, r4, r4, r4, r4
    \row r1, WEIGHTS+8, r5, r6, r7, r4
    \row r2, WEIGHTS+16, r5, r6, r7, r4
    ldrd r8, r9, [sp, #MULTIPLIER]
    ldrd r10, r11, [sp, #ROUND]
    requantize r4, r8, r9, r10
    requantize r5, r8, r9, r10
    requantize r6, r8, r9, r10
    requantize r7, r8, r9, r10
    subs lr, lr, #1
    strb r4, [r3]
    strb r5, [r3, r11]
    add r3, r3, r11, lsl #1
    it pl
    strbpl r7, [r3, r11]
    strb r6, [r3]
    add r3, r3, r11, lsl #1
    bgt 2b
    bmi 5f
4:  ldr r12, [sp, #LEFT]   /* outputs after the last four; three are made as four, with lr still zero */
    cmp r12, #0
    beq 6f
    cmp r12, #2
    bhi 2b
    ldr r4, [sp, #BIAS]
    \pair r0, WEIGHTS, r4, r4
    \pair r1, WEIGHTS+8, r5, r4
    \pair r2, WEIGHTS+16, r5, r4
    ldrd r8, r9, [sp, #MULTIPLIER]
    ldrd r10, r11, [sp, #ROUND]
    ldr r12, [sp, #LEFT]
    requantize r4, r8, r9, r10
    requantize r5, r8, r9, r10
    cmp r12, #2
    strb r4, [r3]
    add r3, r3, r11
    itt eq
    strbeq r5, [r3]
    addeq r3, r3, r11
    b 6f
5:  sub r3, r3, r11
6:  ldrd r8, r9, [sp, #SKIP]
    add r0, r0, r8
    add r1, r1, r8
    add r2, r2, r8
    cmp r0, r9
    bne 1b
    add sp, sp, #FRAME
    pop {r4-r11, pc}
    .size \name, . - \name
.endm

    depthwise_3x3 ms_depthwise_3x3_stride_1, row_1, pair_1
    depthwise_3x3 ms_depthwise_3x3_stride_2, row_2, pair_2

/* Any number of rows of five or seven weights.
 *
 * Registers while rows are added: r0 row, r1 table, r2 and r3 pixels, r4-r7 sums t0-t3, r8-r12 and lr weights
 * w0-w5; each row of the table starts with bytes to the next row of pixels, with bit 0 set in the last, which
 * stays in the carry. */
    t0 .req r4
    t1 .req r5
    t2 .req r6
    t3 .req r7
    w0 .req r8
    w1 .req r9
    w2 .req r10
    w3 .req r11
    w4 .req r12
    w5 .req lr

    .set CHANNEL_MULTIPLIER, 4 /* ms_depthwise_channel */
    .set CHANNEL_ROW_BYTES, 36
    .set CHANNEL_STRIDE, 40
    .set CHANNEL_HEIGHT, 44

    .set POSITION, 0   /* in the order in which four outputs load them */
    .set TABLE, 4
    .set ENTRY_4, 8    /* adds all rows to four sums, or to two */
    .set ENTRY_2, 12
    .set BYTES_4, 16   /* between the pixels of four outputs */
    .set COUNT, 20     /* fours of outputs left in the row */
    .set OUT, 24
    .set FOURS_ANY, 28 /* below: as in ms_depthwise_channel */
    .set LEFT_ANY, 32
    .set SKIP_ANY, 36
    .set END_ANY, 40
    .set FRAME_BYTES, 44
    .set FRAME_ANY, 48 /* then the table: bias; rows; multiplier, shift, round, step */
    .set TABLE_SCALE, 20

.macro product operation, output, pixels, pair
    \operation t\output, \pixels, w\pair, t\output
.endm

/* What the pixels 2n and 2n + 1 of a row give an output. */
.macro tap kernel, stride, outputs, pixels, n, output
    .if \output < \outputs
    .set first, \output * \stride
    .set word, \n - first / 2
    .if word >= 0 && word <= \kernel / 2
    .if first % 2 == 0
    .if word < \kernel / 2
    product smlad, \output, \pixels, %(2 * word)
    .else
    product smlabt, \output, \pixels, %(2 * word - 1)
    .endif
    .else
    .if word == 0
    product smlatb, \output, \pixels, 0
    .else
    product smlad, \output, \pixels, %(2 * word - 1)
    .endif
    .endif
    .endif
    .endif
.endm

.macro taps kernel, stride, outputs, pixels, n
    tap \kernel, \stride, \outputs, \pixels, \n, 0
    tap \kernel, \stride, \outputs, \pixels, \n, 1
    tap \kernel, \stride, \outputs, \pixels, \n, 2
    tap \kernel, \stride, \outputs, \pixels, \n, 3
.endm

/* Words n, n + 1, ... of a row of pixels. */
.macro words kernel, stride, outputs, n, end
    .if \n < \end
    .if \n + 1 < \end
    ldrd r2, r3, [r0, #4 * \n]
    taps \kernel, \stride, \outputs, r2, \n
    taps \kernel, \stride, \outputs, r3, %(\n + 1)
    .else
    ldr r2, [r0, #4 * \n]
    taps \kernel, \stride, \outputs, r2, \n
    .endif
    words \kernel, \stride, \outputs, %(\n + 2), \end
    .endif
.endm

.macro rows label, kernel, stride, outputs
\label:
    .if \kernel == 5
    ldm r1!, {r3, r8-r11}
    .else
    ldm r1!, {r3, r8-r12, lr}
    .endif
    lsrs r3, r3, #1
    add r0, r0, r3, lsl #1
    words \kernel, \stride, \outputs, 0, %(((\outputs - 1) * \stride + \kernel + 1) / 2)
    bcc \label
    .if \outputs == 4
    b finish_4
    .else
    b finish_2
    .endif
.endm

    .type depthwise_rows, %function
    .balign 4
depthwise_rows:
    rows rows_5_1_4, 5, 1, 4
    rows rows_5_2_4, 5, 2, 4
    rows rows_7_1_4, 7, 1, 4
    rows rows_7_2_4, 7, 2, 4
    rows rows_5_1_2, 5, 1, 2
    rows rows_5_2_2, 5, 2, 2
    rows rows_7_1_2, 7, 1, 2
    rows rows_7_2_2, 7, 2, 2
    .size depthwise_rows, . - depthwise_rows

/* void name(const ms_depthwise_channel *channel, const int16_t *copy, const int8_t *weights, int8_t *out)
 * Registers while the table is made: r0 channel, r1 copy, r2 weights, r3 table, r4-r11 a row, r12 rows left. */
.macro depthwise_any kernel
    function ms_depthwise_\kernel
    push {r4-r11, lr}
    ldr r12, [r0, #CHANNEL_HEIGHT]
    mov r4, #4 * \kernel
    mov r5, #FRAME_ANY + TABLE_SCALE
    mla r4, r4, r12, r5
    sub sp, sp, r4
    str r4, [sp, #FRAME_BYTES]
    str r3, [sp, #OUT]
    add r3, sp, #FRAME_ANY
    strd r1, r3, [sp, #POSITION]
    ldr r4, [r0]
    str r4, [r3], #4
    mov r4, #0
1:  ldrsb r5, [r2], #\kernel
    ldrsb r6, [r2, #1 - \kernel]
    ldrsb r7, [r2, #2 - \kernel]
    ldrsb r8, [r2, #3 - \kernel]
    ldrsb r9, [r2, #4 - \kernel]
    .if \kernel == 7
    ldrsb r10, [r2, #-2]
    ldrsb r11, [r2, #-1]
    pkhbt r5, r5, r6, lsl #16
    pkhbt r6, r6, r7, lsl #16
    pkhbt r7, r7, r8, lsl #16
    pkhbt r8, r8, r9, lsl #16
    pkhbt r9, r9, r10, lsl #16
    pkhbt r10, r10, r11, lsl #16
    .else
    pkhbt r5, r5, r6, lsl #16
    pkhbt r6, r6, r7, lsl #16
    pkhbt r7, r7, r8, lsl #16
    pkhbt r8, r8, r9, lsl #16
    .endif
    subs r12, r12, #1
    it eq
    orreq r4, r4, #1
    .if \kernel == 7
    stm r3!, {r4-r10}
    .else
    stm r3!, {r4-r8}
    .endif
    ldr r4, [r0, #CHANNEL_ROW_BYTES]
    bne 1b
    ldr r2, [r0, #CHANNEL_STRIDE]
    adr.w lr, rows_\kernel\()_1_4 + 1
    adr.w r12, rows_\kernel\()_1_2 + 1
    cmp r2, #1
    itt ne
    addne lr, lr, #rows_\kernel\()_2_4 - rows_\kernel\()_1_4
    addne r12, r12, #rows_\kernel\()_2_2 - rows_\kernel\()_1_2
    strd lr, r12, [sp, #ENTRY_4]
    b depthwise_any_rows
    .size ms_depthwise_\kernel, . - ms_depthwise_\kernel
.endm

    depthwise_any 5
    depthwise_any 7

    .type depthwise_any_rows, %function
    .balign 4
depthwise_any_rows:
    lsl r2, r2, #3
    str r2, [sp, #BYTES_4]
    add r0, r0, #CHANNEL_MULTIPLIER
    ldm r0, {r4-r11}
    add r11, r11, r1
    stm r3, {r4-r7}
    add r2, sp, #FOURS_ANY
    stm r2, {r8-r11}
next_row:
    ldr r2, [sp, #FOURS_ANY]
    str r2, [sp, #COUNT]
    cmp r2, #0
    beq leftover
next_4:
    ldm sp, {r0-r2}
    ldr r4, [r1], #4
    mov r5, r4
    mov r6, r4
    mov r7, r4
    bx r2
finish_4:
    ldm r1, {r8-r11}
    ldr r0, [sp, #POSITION]
    add r1, sp, #BYTES_4
    ldm r1, {r1-r3}
    requantize r4, r8, r9, r10
    requantize r5, r8, r9, r10
    requantize r6, r8, r9, r10
    requantize r7, r8, r9, r10
    add r0, r0, r1
    subs r2, r2, #1
    strb r4, [r3]
    strb r5, [r3, r11]
    add r3, r3, r11, lsl #1
    it pl
    strbpl r7, [r3, r11]
    strb r6, [r3]
    add r3, r3, r11, lsl #1
    it mi
    submi r3, r3, r11
    str r0, [sp, #POSITION]
    strd r2, r3, [sp, #COUNT]
    bgt next_4
    bmi row_done
leftover:              /* outputs after the last four; three are made as four, with COUNT still zero */
    ldr r2, [sp, #LEFT_ANY]
    cmp r2, #2
    bhi next_4
    cbz r2, row_done
    ldrd r0, r1, [sp, #POSITION]
    ldr r2, [sp, #ENTRY_2]
    ldr r4, [r1], #4
    mov r5, r4
    bx r2
finish_2:
    ldm r1, {r8-r11}
    ldrd r0, r1, [sp, #POSITION]
    ldr r1, [sp, #BYTES_4]
    ldr r2, [sp, #LEFT_ANY]
    ldr r3, [sp, #OUT]
    add r0, r0, r1, lsr #1
    requantize r4, r8, r9, r10
    requantize r5, r8, r9, r10
    cmp r2, #2
    strb r4, [r3]
    add r3, r3, r11
    itt eq
    strbeq r5, [r3]
    addeq r3, r3, r11
    str r0, [sp, #POSITION]
    str r3, [sp, #OUT]
row_done:
    ldr r0, [sp, #POSITION]
    ldrd r1, r2, [sp, #SKIP_ANY]
    add r0, r0, r1
    str r0, [sp, #POSITION]
    cmp r0, r2
    bne next_row
    ldr r4, [sp, #FRAME_BYTES]
    add sp, sp, r4
    pop {r4-r11, pc}
    .size depthwise_any_rows, . - depthwise_any_rows

/* void ms_depthwise_copy_4(const ms_depthwise_layout *layout, const int8_t *in, int16_t *copy, uint32_t rows)
 * Registers: r0 in, r1 bytes of a pixel, r2 copy, r3 fill, r4 and r5 to the second and fourth channel's copies,
 * r6-r10 pixels, r11 pairs left, r12 rows left, lr layout. */
    .set LAYOUT_LEFT, 16
    .set LAYOUT_PAIRS, 20
    .set LAYOUT_SINGLE, 24
    .set LAYOUT_RIGHT, 28
    .set LAYOUT_SKIP, 32

/* Two pixels' channels to their copies; r8 and r7: channels 0 and 2, 1 and 3 of one, r9 and r6: of the other. */
.macro put
    pkhbt r10, r8, r9, lsl #16
    pkhtb r9, r9, r8, asr #16
    pkhbt r8, r7, r6, lsl #16
    pkhtb r6, r6, r7, asr #16
    str r8, [r2, r4]
    str r9, [r2, r4, lsl #1]
    str r6, [r2, r5]
    str r10, [r2], #4
.endm

.macro put_fill
    str r3, [r2, r4]
    str r3, [r2, r4, lsl #1]
    str r3, [r2, r5]
    str r3, [r2], #4
.endm

    function ms_depthwise_copy_4
    push {r4-r11, lr}
    mov lr, r0
    mov r0, r1
    mov r12, r3
    ldr r1, [lr], #4
    ldm lr, {r4, r5}
    ldr r3, [lr, #8]
    sub lr, lr, #4
1:  ldr r11, [lr, #LAYOUT_LEFT]
    lsrs r11, r11, #1
    beq 3f
2:  put_fill
    subs r11, r11, #1
    bne 2b
    ldr r11, [lr, #LAYOUT_LEFT]
    lsrs r11, r11, #1
3:  ldr r11, [lr, #LAYOUT_PAIRS]
    bcc 4f
    ldr r6, [r0]
    mov r7, r3
    mov r8, r3
    add r0, r0, r1
    sxtb16 r9, r6
    sxtb16 r6, r6, ror #8
    put
4:  cmp r11, #0
    beq 6f
5:  ldr r8, [r0]
    ldr r9, [r0, r1]
    add r0, r0, r1, lsl #1
    sxtb16 r7, r8, ror #8
    sxtb16 r6, r9, ror #8
    sxtb16 r8, r8
    sxtb16 r9, r9
    subs r11, r11, #1
    put
    bne 5b
6:  ldr r10, [lr, #LAYOUT_SINGLE]
    ldr r11, [lr, #LAYOUT_RIGHT]
    cmp r10, #0
    beq 7f
    ldr r8, [r0]
    mov r9, r3
    mov r6, r3
    add r0, r0, r1
    sxtb16 r7, r8, ror #8
    sxtb16 r8, r8
    put
7:  cmp r11, #0
    beq 9f
8:  put_fill
    subs r11, r11, #1
    bne 8b
9:  ldr r10, [lr, #LAYOUT_SKIP]
    subs r12, r12, #1
    add r0, r0, r10
    bne 1b
    pop {r4-r11, pc}
    .size ms_depthwise_copy_4, . - ms_depthwise_copy_4
#endif

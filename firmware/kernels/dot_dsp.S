/* Widening and sums of products, for cores with the DSP extension; dot.h says what columns and streams hold.
 *
 * A word of weights is an operand as it lies in the stream, with the odd pair of a pixel, and once its bytes 1
 * and 3 are extended, with the even pair: for three pixels and two output channels, seventeen instructions
 * make twenty-four multiplications. */
#if defined(__ARM_FEATURE_DSP)
    .syntax unified
    .thumb
    .text

    .set STREAM, 0         /* ms_products */
    .set GROUPS, 4
    .set OUT_CHANNELS, 6
    .set OUT_ZERO_POINT, 8

/* Turns even bytes b into b - 128 and odd ones x1 into -256 (x1 + 1), and is -128 as either int16. */
    .set EVEN, 0xff80ff80

.macro function name
    .global \name
    .type \name, %function
    .balign 4
\name:
.endm

/* From a word of four bytes to an odd pair and, in its place, an even one; adds to a correction. */
.macro widen even, odd, correction
    sxtb16 \odd, \even, ror #8
    eor \even, \even, r3
    smlad \correction, \odd, r3, \correction
.endm

/* int32_t name(const int8_t *bytes, uint32_t groups, int16_t *column)
 * Registers: r0 bytes, r1 groups left, r2 column, r3 EVEN, r4 and r5 pairs, r12 correction. */
.macro widen_function name, store
    function \name
    push {r4, r5}
    movw r3, #EVEN & 0xffff
    movt r3, #EVEN >> 16
    mov r12, #0
    lsrs r1, r1, #1
    bcc 1f
    ldr r4, [r0], #4
    widen r4, r5, r12
    \store
    cbz r1, 2f
1:  ldr r4, [r0], #4
    subs r1, r1, #1
    widen r4, r5, r12
    \store
    ldr r4, [r0], #4
    widen r4, r5, r12
    \store
    bne 1b
2:  mov r0, r12
    pop {r4, r5}
    bx lr
    .size \name, . - \name
.endm

.macro store_alone
    strd r5, r4, [r2], #8
.endm

.macro store_among
    str r4, [r2, #12]
    str r5, [r2], #24
.endm

    widen_function ms_widen_alone, store_alone
    widen_function ms_widen_among, store_among

/* void ms_widen_all(const int8_t *bytes, uint32_t groups, int16_t *columns, uint32_t distance,
 *                   int32_t corrections[3])
 * Registers: r0 bytes, r1 distance, r2 columns, r3 EVEN, r4-r6 odd and r7-r9 even pairs, r10-r12 corrections,
 * lr the end of bytes. */
    .set CORRECTIONS_IN, 36  /* on the caller's stack */
    function ms_widen_all
    push {r4-r11, lr}
    ldr r4, [sp, #CORRECTIONS_IN]
    add lr, r0, r1, lsl #2
    mov r1, r3
    movw r3, #EVEN & 0xffff
    movt r3, #EVEN >> 16
    ldm r4, {r10-r12}
1:  ldr r8, [r0, r1]
    ldr r9, [r0, r1, lsl #1]
    ldr r7, [r0], #4
    widen r8, r5, r11
    widen r9, r6, r12
    widen r7, r4, r10
    cmp r0, lr
    stm r2!, {r4-r9}
    bne 1b
    ldr r4, [sp, #CORRECTIONS_IN]
    stm r4, {r10-r12}
    pop {r4-r11, pc}
    .size ms_widen_all, . - ms_widen_all

/* void ms_join(const int8_t *row, uint32_t length, uint32_t rows, uint32_t row_bytes, int8_t *bytes)
 * Four bytes at a time, of which the last four of a row may overlap those before.
 * Registers: r0 row, r1 length, r2 rows left, r3 bytes of a row, r4 copy, r5 length - 4, r6 the last four bytes of
 * the row, r7 next bytes, r8 a word, r12 end of the copied row. */
    .set BYTES_IN, 20  /* on the caller's stack */
    function ms_join
    push {r4-r8}
    ldr r4, [sp, #BYTES_IN]
    subs r5, r1, #4
    blo 3f
1:  add r6, r0, r5
    mov r7, r0
    add r12, r4, r1
2:  ldr r8, [r7], #4
    cmp r7, r6
    str r8, [r4], #4
    blo 2b
    ldr r8, [r6]
    subs r2, r2, #1
    mov r4, r12
    str r8, [r12, #-4]
    add r0, r0, r3
    bne 1b
    pop {r4-r8}
    bx lr
3:  mov r7, r0             /* rows of less than four bytes */
    add r12, r4, r1
4:  ldrb r8, [r7], #1
    strb r8, [r4], #1
    cmp r4, r12
    bne 4b
    add r0, r0, r3
    subs r2, r2, #1
    bne 3b
    pop {r4-r8}
    bx lr
    .size ms_join, . - ms_join

/* (x * multiplier >> 31 rounded up at halves), / 2^(shift + 1) rounded away at halves, + zero point, int8.
 * multiplier: 2^32 less than twice the stream's, which is at least 2^30. round: 2 * zero point + 1. */
.macro requantize x, multiplier, shift, round
    smmlar \x, \x, \multiplier, \x
    add.w \x, \x, \x, asr #31
    asr.w \x, \x, \shift
    add.w \x, \x, \round
    ssat \x, #8, \x, asr #1
.endm

/* The same where a shift has bit 7 set: nothing is divided, and its low bits shift to the left before. */
.macro requantize_any x, multiplier, shift, round, temporary
    tst \shift, #0x80
    bne 1f
    requantize \x, \multiplier, \shift, \round
    b 2f
1:  and \temporary, \shift, #0x7f
    lsl \x, \x, \temporary
    smmlar \x, \x, \multiplier, \x
    add.w \x, \round, \x, lsl #1
    ssat \x, #8, \x, asr #1
2:
.endm

/* void ms_dot_3_pairs(const ms_products *products, const int16_t *columns, const int32_t corrections[3],
 *                     int8_t *out)
 * Registers in the loop: r0 columns, r1 stream, r2-r4 sums of channel a, r5-r7 of channel b, r8 and r9 weights,
 * r10-r12 pairs of the pixels, lr the end of the weights. */
    .set COLUMNS, 0    /* in the order in which a pair of channels loads them */
    .set WEIGHTS, 4    /* bytes of a pair's weights */
    .set ENTRY, 8      /* where in the unrolled loop a pair starts */
    .set CORRECTIONS, 12
    .set ROUND, 24
    .set STRIDE, 28    /* output channels */
    .set OUT, 32
    .set PAIRS, 36     /* of channels left */
    .set FRAME, 40

.macro products
    smlad r2, r10, r8, r2
    smlad r3, r11, r8, r3
    smlad r4, r12, r8, r4
    smlad r5, r10, r9, r5
    smlad r6, r11, r9, r6
    smlad r7, r12, r9, r7
.endm

.macro group
    ldrd r8, r9, [r1], #8
    ldm r0!, {r10-r12}
    products
    ldm r0!, {r10-r12}
    sxtb16 r8, r8, ror #8
    sxtb16 r9, r9, ror #8
    products
.endm

    function ms_dot_3_pairs
    push {r4-r11, lr}
    sub sp, sp, #FRAME
    mov r10, r3
    ldrh r3, [r0, #GROUPS]
    ldrh r9, [r0, #OUT_CHANNELS]
    ldrsb r8, [r0, #OUT_ZERO_POINT]
    ldm r2, {r5-r7}
    ldr r0, [r0, #STREAM]
    mov r12, #group_end - group_start
    adr.w lr, group_start + 1
    rsb r4, r3, #0
    and r4, r4, #7
    mla r4, r4, r12, lr
    lsl r2, r3, #3
    lsl r8, r8, #1
    add r8, r8, #1
    lsr r11, r9, #1
    stm sp, {r1, r2, r4-r11}
    mov r1, r0

next_pair:
    ldrd r2, r5, [r1], #8
    ldm sp, {r0, r8-r12}
    add.w lr, r1, r8
    add.w r3, r2, r11
    add.w r4, r2, r12
    add.w r2, r2, r10
    add.w r6, r5, r11
    add.w r7, r5, r12
    add.w r5, r5, r10
    bx r9
    .balign 4
group_start:
    group
group_end:
    .rept 7
    group
    .endr
    cmp r1, lr
    bne.w group_start

    ldm r1!, {r8-r10}
    ldrd r12, lr, [sp, #ROUND]
    tst r10, #0x00800080
    lsr r11, r10, #16
    lsl r8, r8, #1
    lsl r9, r9, #1
    bne undivided
    requantize r2, r8, r10, r12
    requantize r3, r8, r10, r12
    requantize r4, r8, r10, r12
    requantize r5, r9, r11, r12
    requantize r6, r9, r11, r12
    requantize r7, r9, r11, r12
store:
    ldrd r0, r9, [sp, #OUT]
    add r8, r0, lr
    subs r9, r9, #1
    add lr, lr, r8
    strb r5, [r0, #1]
    strb r2, [r0], #2
    strb r3, [r8]
    strb r6, [r8, #1]
    strb r4, [lr]
    strb r7, [lr, #1]
    strd r0, r9, [sp, #OUT]
    bne.w next_pair

    add sp, sp, #FRAME
    pop {r4-r11, pc}

undivided:
    requantize_any r2, r8, r10, r12, r0
    requantize_any r3, r8, r10, r12, r0
    requantize_any r4, r8, r10, r12, r0
    requantize_any r5, r9, r11, r12, r0
    requantize_any r6, r9, r11, r12, r0
    requantize_any r7, r9, r11, r12, r0
    b store
    .size ms_dot_3_pairs, . - ms_dot_3_pairs

/* void ms_dot_1_pairs(const ms_products *products, const int16_t *column, int32_t correction, int8_t *out)
 * Registers in the loop: r0 column, r1 stream, r2 and r3 sums, r4-r7 weights of two groups, r8-r11 pairs of the
 * pixel, r12 fours of groups left, lr groups. */
    .set COLUMN, 0     /* below: in the order in which a pair of channels loads them */
    .set CORRECTION, 4
    .set ROUND_1, 8
    .set OUT_1, 12
    .set PAIRS_1, 16
    .set FRAME_1, 20

.macro products_1 a, b, odd, even
    smlad r2, \odd, \a, r2
    smlad r3, \odd, \b, r3
    sxtb16 \a, \a, ror #8
    sxtb16 \b, \b, ror #8
    smlad r2, \even, \a, r2
    smlad r3, \even, \b, r3
.endm

.macro two_groups
    ldm r1!, {r4-r7}
    ldm r0!, {r8-r11}
    products_1 r4, r5, r8, r9
    products_1 r6, r7, r10, r11
.endm

    function ms_dot_1_pairs
    push {r4-r11, lr}
    sub sp, sp, #FRAME_1
    ldrh lr, [r0, #GROUPS]
    ldrh r5, [r0, #OUT_CHANNELS]
    ldrsb r4, [r0, #OUT_ZERO_POINT]
    ldr r0, [r0, #STREAM]
    lsr r5, r5, #1
    lsl r4, r4, #1
    add r4, r4, #1
    strd r1, r2, [sp, #COLUMN]
    str r4, [sp, #ROUND_1]
    strd r3, r5, [sp, #OUT_1]
    mov r1, r0

next_pair_1:
    ldrd r0, r4, [sp, #COLUMN]
    ldrd r2, r3, [r1], #8
    lsrs r12, lr, #2
    add.w r2, r2, r4
    add.w r3, r3, r4
    beq 2f
1:  two_groups
    two_groups
    subs r12, r12, #1
    bne 1b
2:  tst lr, #2
    beq 3f
    two_groups
3:  tst lr, #1
    beq 4f
    ldrd r4, r5, [r1], #8
    ldrd r8, r9, [r0], #8
    products_1 r4, r5, r8, r9
4:  ldm r1!, {r4-r6}
    ldr r12, [sp, #ROUND_1]
    tst r6, #0x00800080
    lsr r7, r6, #16
    lsl r4, r4, #1
    lsl r5, r5, #1
    bne undivided_1
    requantize r2, r4, r6, r12
    requantize r3, r5, r7, r12
store_1:
    ldrd r0, r4, [sp, #OUT_1]
    strb r3, [r0, #1]
    strb r2, [r0], #2
    subs r4, r4, #1
    strd r0, r4, [sp, #OUT_1]
    bne next_pair_1
    add sp, sp, #FRAME_1
    pop {r4-r11, pc}

undivided_1:
    requantize_any r2, r4, r6, r12, r0
    requantize_any r3, r5, r7, r12, r0
    b store_1
    .size ms_dot_1_pairs, . - ms_dot_1_pairs
#endif

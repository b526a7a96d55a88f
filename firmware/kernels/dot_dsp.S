/* Sums of products of three pixels and two output channels at a time, for cores with the DSP extension.
 *
 * Twenty instructions make twenty-four multiplications: two weights of each channel and of each pixel are
 * multiplied by one SMLAD; weights are widened once for three pixels. Registers in the loop:
 *   r0 columns, r1 stream, r2-r4 sums of channel a, r5-r7 of channel b, r8-r11 weights, r12 and lr pixels. */
#if defined(__ARM_FEATURE_DSP)
    .syntax unified
    .thumb
    .text

    .set OUT, 0        /* three output pointers */
    .set PAIRS, 12     /* pairs of channels left */
    .set COLUMNS, 16
    .set WEIGHTS, 20   /* bytes of a pair's weights */
    .set END, 24       /* of the weights of this pair */
    .set ENTRY, 28     /* where in the unrolled loop a pair starts */
    .set FRAME, 32
    .set ROUND, FRAME + 36 + 0  /* 2 * zero point + 1; on the caller's stack */

.macro pixel a, b
    ldrd r12, lr, [r0], #8
    smlad \a, r12, r8, \a
    smlad \b, r12, r10, \b
    smlad \a, lr, r9, \a
    smlad \b, lr, r11, \b
.endm

.macro group
    ldrd r9, r11, [r1], #8
    sxtb16 r8, r9
    sxtb16 r10, r11
    sxtb16 r9, r9, ror #8
    sxtb16 r11, r11, ror #8
    pixel r2, r5
    pixel r3, r6
    pixel r4, r7
.endm

/* (x * multiplier >> 31 rounded up at halves), / 2^(shift + 1) rounded away at halves, + zero point, int8 */
.macro requantize x, multiplier, shift
    lsls.w \x, \x, #1
    smmulr \x, \x, \multiplier
    add.w \x, \x, \x, asr #31
    asr.w \x, \x, \shift
    add.w \x, \x, r12
    ssat \x, #8, \x, asr #1
.endm

/* The same where a shift has bit 7 set: nothing is divided, and its low bits shift to the left before. */
.macro requantize_any x, multiplier, shift
    tst \shift, #0x80
    bne 1f
    requantize \x, \multiplier, \shift
    b 2f
1:  and r0, \shift, #0x7f
    lsl \x, \x, r0
    lsls.w \x, \x, #1
    smmulr \x, \x, \multiplier
    add.w \x, r12, \x, lsl #1
    ssat \x, #8, \x, asr #1
2:
.endm

/* void ms_dot_3_pairs(const int16_t *columns, const int32_t *stream, int8_t *const out[3], uint32_t pairs,
 *                     int32_t round, uint32_t groups) */
    .global ms_dot_3_pairs
    .type ms_dot_3_pairs, %function
    .balign 4
ms_dot_3_pairs:
    push {r4-r11, lr}
    sub sp, sp, #FRAME
    str r3, [sp, #PAIRS]
    str r0, [sp, #COLUMNS]
    ldm r2, {r4-r6}
    stm sp, {r4-r6}
    ldr r4, [sp, #ROUND + 4]
    lsl r5, r4, #3
    str r5, [sp, #WEIGHTS]
    rsb r4, r4, #0
    and r4, r4, #7
    mov r6, #group_end - group_start
    mul r4, r4, r6
    adr.w r5, group_start
    add r4, r4, r5
    orr r4, r4, #1
    str r4, [sp, #ENTRY]

next_pair:
    ldrd r2, r5, [r1], #8
    ldr r12, [sp, #WEIGHTS]
    ldr r0, [sp, #COLUMNS]
    add r12, r1, r12
    ldr r8, [sp, #ENTRY]
    str r12, [sp, #END]
    mov r3, r2
    mov r4, r2
    mov r6, r5
    mov r7, r5
    bx r8
    .balign 4
group_start:
    group
group_end:
    .rept 7
    group
    .endr
    ldr r12, [sp, #END]
    cmp r1, r12
    bne.w group_start

    ldrd r8, r9, [r1], #8
    ldr r10, [r1], #4
    ldr r12, [sp, #ROUND]
    lsr r11, r10, #16
    tst r10, #0x00800080
    bne undivided
    requantize r2, r8, r10
    requantize r3, r8, r10
    requantize r4, r8, r10
    requantize r5, r9, r11
    requantize r6, r9, r11
    requantize r7, r9, r11
store:
    ldm sp, {r0, r8, lr}
    strb r2, [r0], #1
    strb r5, [r0], #1
    strb r3, [r8], #1
    strb r6, [r8], #1
    strb r4, [lr], #1
    strb r7, [lr], #1
    stm sp, {r0, r8, lr}
    ldr r0, [sp, #PAIRS]
    subs r0, r0, #1
    str r0, [sp, #PAIRS]
    bne next_pair

    add sp, sp, #FRAME
    pop {r4-r11, pc}

undivided:
    requantize_any r2, r8, r10
    requantize_any r3, r8, r10
    requantize_any r4, r8, r10
    requantize_any r5, r9, r11
    requantize_any r6, r9, r11
    requantize_any r7, r9, r11
    b store
    .size ms_dot_3_pairs, . - ms_dot_3_pairs
#endif

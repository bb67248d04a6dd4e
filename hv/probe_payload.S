/* What a host must be able to do before we believe its /dev/kvm: a multiboot kernel of a
 * few hundred bytes that says each thing it has managed on the debug console (port 0xe9).
 *
 *   A  entered in protected mode        0 1 2 3 4  50,000 loops of two instructions each
 *   B  in long mode, paging on          D  cmpxchg16b (d: the CPU has none)
 *                                       Z  xsave and xrstor (z: the CPU has none)
 *
 * Emulators that pass for KVM get stuck at one of these, or are far too slow between 0 and 4.
 */
        .set    LOOPS, 50000
        .set    MAGIC, 0x1BADB002
        .set    FLAGS, 0x00010000       /* the addresses below are valid */
        .set    BASE, 0x100000

        .section .text
        .globl  _start
        .code32
header:
        .long   MAGIC, FLAGS, -(MAGIC + FLAGS)
        .long   header, BASE, 0, bss_end, _start

        .macro  say letter
        movb    $\letter, %al
        outb    %al, $0xe9
        .endm

_start:
        movl    $stack_top, %esp
        say     'A'
        /* Identity map of the first GiB: one PML4, one PDPT, one PD of 2 MiB pages. */
        movl    $pdpt, %eax
        orl     $3, %eax
        movl    %eax, pml4
        movl    $pd, %eax
        orl     $3, %eax
        movl    %eax, pdpt
        xorl    %ecx, %ecx
fill:   movl    %ecx, %eax
        shll    $21, %eax
        orl     $0x83, %eax
        movl    %eax, pd(,%ecx,8)
        incl    %ecx
        cmpl    $512, %ecx
        jne     fill
        movl    %cr4, %eax
        orl     $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xC0000080, %ecx       /* EFER.LME */
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        andl    $~0xC, %eax             /* not EM, not TS: vector state is used below */
        orl     $0x80000002, %eax       /* PG, MP */
        movl    %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $8, $long_mode

        .code64
long_mode:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        say     'B'
        movb    $'0', %bl
mark:   movb    %bl, %al
        outb    %al, $0xe9
        cmpb    $'4', %bl
        je      timed
        incb    %bl
        movl    $LOOPS, %ecx
loop:   decl    %ecx
        jnz     loop
        jmp     mark
timed:
        .ifdef  LIGHT
        jmp     stop                    /* what even an emulated KVM can do */
        .endif
        movl    $1, %eax
        cpuid
        movl    %ecx, %ebp
        btl     $13, %ebp
        jnc     no_cmpxchg16b
        xorl    %eax, %eax
        xorl    %edx, %edx
        movl    $1, %ebx
        movl    $2, %ecx
        lock cmpxchg16b pair
        jnz     stop
        say     'D'
        jmp     vector
no_cmpxchg16b:
        say     'd'
vector:
        btl     $26, %ebp
        jnc     no_xsave
        movq    %cr4, %rax
        orl     $0x40000, %eax          /* OSXSAVE */
        movq    %rax, %cr4
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        movl    $3, %eax                /* x87 and SSE, which every XSAVE has */
        xsetbv
        movl    $3, %eax
        xorl    %edx, %edx
        xsave   area
        xrstor  area
        say     'Z'
        jmp     stop
no_xsave:
        say     'z'
stop:
        movb    $0, %al
        outb    %al, $0xf4              /* isa-debug-exit, where there is one */
        movb    $6, %al
        movw    $0xcf9, %dx
        outb    %al, %dx                /* else a reset, which ends the domain */
halt:   hlt
        jmp     halt

        .balign 8
gdt:    .quad   0
        .quad   0x00209A0000000000      /* 64-bit code */
        .quad   0x0000920000000000      /* data */
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .section .bss
        .balign 4096
pml4:   .skip   4096
pdpt:   .skip   4096
pd:     .skip   4096
        .balign 64
area:   .skip   4096
pair:   .skip   16
stack:  .skip   4096
stack_top:
bss_end:

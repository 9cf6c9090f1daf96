# Makes redline.xo: vivado -mode batch -source gen_xo.tcl [-tclargs XO]

set here [file dirname [file normalize [info script]]]
if {$::argc > 1} {
    error "usage: vivado -mode batch -source gen_xo.tcl \[-tclargs XO\]"
}
set xo [file normalize [expr {$::argc == 1 ? [lindex $::argv 0] : [file join $here redline.xo]}]]
set work [file join $here work]
set packaged [file join $work packaged]

source [file join $here interface.tcl]
foreach needed {redline.v kernel.xml} {
    if {![file exists [file join $here $needed]]} {
        error "[file join $here $needed] is missing: run `redline kernel` again"
    }
}
# An old package, or an old kernel, would be taken for the new one.
file delete -force $work $xo
file mkdir $work

source [file join $here package_kernel.tcl]

# The control protocol is in kernel.xml, where package_xo looks for it.
package_xo -xo_path $xo -kernel_name $kernel -ip_directory $packaged -kernel_xml [file join $here kernel.xml]
if {![file exists $xo]} {
    error "package_xo left no $xo"
}

# Stand-ins for Vivado's commands: each records its call; those that make files or objects make them.

set calls {}
set exists {}

proc record {name arguments} {
    global calls
    lappend calls [linsert $arguments 0 $name]
}

proc option {arguments name {default ""}} {
    set at [lsearch -exact $arguments $name]
    return [expr {$at < 0 ? $default : [lindex $arguments [expr {$at + 1}]]}]
}

# The calls as text: a line each, words separated by tabs.
proc dump {} {
    global calls
    return [join [lmap call $calls {join $call "\t"}] "\n"]
}

# Objects are strings: what they are, and of which object.
proc made {object} {
    global exists
    if {$object ni $exists} {
        lappend exists $object
    }
    return $object
}

proc needs {object} {
    global exists
    if {$object ni $exists} {
        error "there is no $object"
    }
}

proc create_project {args} { record create_project $args; file mkdir [lindex $args end]; made project }
proc close_project {args} { record close_project $args; needs project }
proc current_fileset {} { needs project; return [made fileset] }
proc update_compile_order {args} { record update_compile_order $args }
proc set_property {name value object} { record set_property [list $name $value $object]; needs $object }
proc get_property {name object} { needs $object; return [lindex [split $object :] end] }

proc add_files {args} {
    record add_files $args
    foreach path [lindex $args end] {
        if {![file exists $path]} { error "there is no file $path" }
    }
}

proc package_xo {args} {
    record package_xo $args
    needs saved
    if {![file exists [option $args -kernel_xml]]} { error "there is no kernel.xml" }
    if {![file exists [file join [option $args -ip_directory] component.xml]]} { error "there is no IP" }
    if {[file exists [option $args -xo_path]]} { error "the kernel exists already, and -force is not given" }
    close [open [option $args -xo_path] w]
}

namespace eval ipx {
    proc package_project {args} {
        ::record ipx::package_project $args
        ::needs project
        set folder [::option $args -root_dir]
        file mkdir $folder
        close [open [file join $folder component.xml] w]
        # What Vivado infers from the names of the ports.
        foreach bus {ap_clk ap_rst_n interrupt s_axi_control m_axi_gmem} { ::made bus:$bus }
        ::made parameter:left_over
    }
    proc unload_core {args} { ::record ipx::unload_core $args }
    proc edit_ip_in_project {args} {
        ::record ipx::edit_ip_in_project $args
        if {![file exists [lindex $args end]]} { error "there is no component.xml" }
        ::made core
    }
    proc current_core {} { ::needs core; return core }
    proc get_user_parameters {args} { return [list parameter:left_over] }
    proc remove_user_parameter {name core} { ::record ipx::remove_user_parameter [list $name $core] }
    proc get_bus_interfaces {name args} { ::needs bus:$name; return bus:$name }
    proc associate_bus_interfaces {args} {
        ::record ipx::associate_bus_interfaces $args
        foreach which {-busif -clock -reset} {
            set name [::option $args $which]
            if {$name ne ""} { ::needs bus:$name }
        }
    }
    proc remove_bus_parameter {args} { ::record ipx::remove_bus_parameter $args; ::needs [lindex $args end] }
    proc add_memory_map {args} { ::record ipx::add_memory_map $args; return [::made map:[lindex $args end-1]] }
    proc add_address_block {args} { ::record ipx::add_address_block $args; return [::made block:[lindex $args end-1]] }
    proc add_register {args} {
        ::record ipx::add_register $args
        ::needs [lindex $args end]
        return [::made register:[lindex $args end-1]]
    }
    proc add_register_parameter {args} {
        ::record ipx::add_register_parameter $args
        ::needs [lindex $args end]
        return [::made [lindex $args end]:[lindex $args end-1]]
    }
    proc create_xgui_files {core} { ::record ipx::create_xgui_files $core }
    proc update_checksums {core} { ::record ipx::update_checksums $core }
    proc check_integrity {args} { ::record ipx::check_integrity $args }
    proc save_core {core} { ::record ipx::save_core $core; ::needs core; ::made saved }
}

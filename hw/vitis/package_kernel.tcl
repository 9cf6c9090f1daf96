# Packages redline.v as a Vivado IP that v++ takes for a kernel. Sourced by gen_xo.tcl, which sets `here` and `packaged`.

create_project -force redline_package [file join $work project]
add_files -norecurse [list [file join $here redline.v]]
set_property top $kernel [current_fileset]
update_compile_order -fileset sources_1

ipx::package_project -root_dir $packaged -vendor $vendor -library $library -taxonomy /KernelIP \
    -import_files -set_current false
ipx::unload_core [file join $packaged component.xml]
ipx::edit_ip_in_project -upgrade true -name redline_edit -directory $packaged [file join $packaged component.xml]
set core [ipx::current_core]
set_property name $kernel $core
set_property version $version $core
set_property display_name "Redline" $core
set_property description "Neural-network accelerator that can be overclocked and made faulty" $core
foreach parameter [ipx::get_user_parameters -of_objects $core] {
    ipx::remove_user_parameter [get_property NAME $parameter] $core
}

# Both ports belong to the one clock, the clock has the one reset, and v++ chooses the frequency.
ipx::associate_bus_interfaces -busif $memory_port -clock ap_clk $core
ipx::associate_bus_interfaces -busif $control_port -clock ap_clk $core
ipx::associate_bus_interfaces -clock ap_clk -reset ap_rst_n $core
foreach name [list ap_clk $memory_port $control_port] {
    ipx::remove_bus_parameter -quiet FREQ_HZ [ipx::get_bus_interfaces $name -of_objects $core]
}

# The control port's registers; an argument that is a pointer names the port it is used on.
set map [ipx::add_memory_map -quiet $control_port $core]
set_property slave_memory_map_ref $control_port [ipx::get_bus_interfaces $control_port -of_objects $core]
set block [ipx::add_address_block -quiet reg0 $map]
foreach register $registers {
    lassign $register name offset bits is_pointer meaning
    set entry [ipx::add_register -quiet $name $block]
    set_property description $meaning $entry
    set_property address_offset $offset $entry
    set_property size $bits $entry
    if {$is_pointer} {
        set_property value $memory_port [ipx::add_register_parameter -quiet ASSOCIATED_BUSIF $entry]
    }
}

set_property sdx_kernel true $core
set_property sdx_kernel_type rtl $core
set_property vitis_drc [list ctrl_protocol $protocol] $core
set_property ipi_drc {ignore_freq_hz true} $core
set_property supported_families {} $core
set_property auto_family_support_level level_2 $core
ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity -kernel $core
ipx::save_core $core
close_project -delete

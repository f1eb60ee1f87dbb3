# Fakes of the Vivado commands that hls_src/scripts/vivado.tcl uses, for tclsh. They keep the block
# design, refuse what Vivado is known to refuse (a pin that the cell lacks, a port connected twice,
# an address outside its window), check the whole design in validate_bd_design, and log each call to
# $FAKE_LOG, one Tcl list per line. Any other command is an error. The IP's pins and properties are
# from Vivado's documents and published scripts; not compared with a real Vivado.
#
# Environment: FAKE_LOG; FAKE_BOARD_PARTS, parts with board files; FAKE_BUNDLES, the kernel's AXI
# masters; FAKE_REPORTS, a folder with utilization.rpt and timing.rpt; FAKE_PROGRESS, progress of
# the implementation; FAKE_PLL_MHZ, the PLL that the processor divides for the fabric's clock;
# FAKE_STORE_PARTS, board files of the Board Store; empty: Vivado has no Board Store.

set log [open $env(FAKE_LOG) w]
proc note {args} {
    puts $::log $args
    flush $::log
}
proc refuse {message} {
    error "fake tool: $message"
}

set cell_ip {}      ;# cell -> IP, without a version
set setting {}      ;# cell -> dictionary of CONFIG.*
set links {}        ;# interface pin -> the pin at the other end
set driver {}       ;# pin -> the pin that drives it
set assigned {}     ;# address space -> segments
set excluded {}
set state {}        ;# completed steps: project, design, validated, saved, wrapper, run, open

proc need {what} {
    if {$what ni $::state} { refuse "this needs to come after: $what" }
}
proc done {what} {
    lappend ::state $what
}

# ---- IP -------------------------------------------------------------------------------

proc config {cell name default} {
    if {[dict exists $::setting $cell CONFIG.$name]} {
        return [dict get $::setting $cell CONFIG.$name]
    }
    return $default
}

# Valid values of an IP's property; empty if the IP has no such property.
proc known_values {ip name} {
    if {[regexp {^CONFIG\.(.*)$} $name _ short] == 0} { return {} }
    switch -glob $ip/$short {
        smartconnect/NUM_SI { return {1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16} }
        smartconnect/NUM_MI { return {1 2 3 4} }
        zynq_ultra_ps_e/PSU__USE__M_AXI_GP[012] - zynq_ultra_ps_e/PSU__USE__S_AXI_GP[0-6] -
        zynq_ultra_ps_e/PSU__FPGA_PL[0-3]_ENABLE - processing_system7/PCW_USE_M_AXI_GP[01] -
        processing_system7/PCW_USE_S_AXI_HP[0-3] { return {0 1} }
        zynq_ultra_ps_e/PSU__MAXIGP[012]__DATA_WIDTH - zynq_ultra_ps_e/PSU__SAXIGP[0-6]__DATA_WIDTH {
            return {32 64 128}
        }
        processing_system7/PCW_S_AXI_HP[0-3]_DATA_WIDTH { return {32 64} }
        zynq_ultra_ps_e/PSU__CRL_APB__PL[0-3]_REF_CTRL__FREQMHZ -
        processing_system7/PCW_FPGA[0-3]_PERIPHERAL_FREQMHZ { return number }
    }
    return {}
}

# Interface pins of a cell: name -> master or slave.
proc interfaces {cell} {
    set pins {}
    switch [dict get $::cell_ip $cell] {
        smartconnect {
            for {set n 0} {$n < [config $cell NUM_SI 1]} {incr n} {
                dict set pins [format S%02d_AXI $n] slave
            }
            for {set n 0} {$n < [config $cell NUM_MI 1]} {incr n} {
                dict set pins [format M%02d_AXI $n] master
            }
        }
        zynq_ultra_ps_e {
            # The boards' presets enable the first two.
            foreach {n name default} {0 M_AXI_HPM0_FPD 1 1 M_AXI_HPM1_FPD 1 2 M_AXI_HPM0_LPD 0} {
                if {[config $cell PSU__USE__M_AXI_GP$n $default]} { dict set pins $name master }
            }
            for {set n 0} {$n < 4} {incr n} {
                if {[config $cell PSU__USE__S_AXI_GP[expr {$n + 2}] 0]} {
                    dict set pins S_AXI_HP${n}_FPD slave
                }
            }
        }
        processing_system7 {
            foreach n {0 1} {
                if {[config $cell PCW_USE_M_AXI_GP$n [expr {$n == 0}]]} {
                    dict set pins M_AXI_GP$n master
                }
            }
            for {set n 0} {$n < 4} {incr n} {
                if {[config $cell PCW_USE_S_AXI_HP$n 0]} { dict set pins S_AXI_HP$n slave }
            }
        }
        llama {
            dict set pins s_axi_control slave
            foreach bundle $::env(FAKE_BUNDLES) { dict set pins m_axi_$bundle master }
        }
    }
    return $pins
}

# Other pins: name -> clock, reset (inputs), clock_out, reset_out or open (may stay open).
proc pins {cell} {
    set pins {}
    switch [dict get $::cell_ip $cell] {
        smartconnect { set pins {aclk clock aresetn reset} }
        proc_sys_reset {
            set pins {slowest_sync_clk clock ext_reset_in reset peripheral_aresetn reset_out
                interconnect_aresetn reset_out dcm_locked open aux_reset_in open mb_debug_sys_rst open}
        }
        zynq_ultra_ps_e {
            if {[config $cell PSU__FPGA_PL0_ENABLE 0]} { set pins {pl_clk0 clock_out pl_resetn0 reset_out} }
            foreach name [dict keys [interfaces $cell]] {
                dict set pins [string map {m_axi_ maxi s_axi_ saxi} [string tolower $name]]_aclk clock
            }
        }
        processing_system7 {
            set pins {FCLK_CLK0 clock_out FCLK_RESET0_N reset_out}
            foreach name [dict keys [interfaces $cell]] { dict set pins ${name}_ACLK clock }
        }
        llama { set pins {ap_clk clock ap_rst_n reset interrupt open} }
    }
    return $pins
}

proc known_pin {kind path} {
    lassign [split [string trimleft $path /] /] cell pin
    if {![dict exists $::cell_ip $cell]} { refuse "there is no cell '$cell'" }
    if {![dict exists [$kind $cell] $pin]} {
        refuse "the cell $cell has no pin '$pin': it has [lsort [dict keys [$kind $cell]]]"
    }
    return /$cell/$pin
}
proc kind_of {kind path} {
    lassign [split [string trimleft $path /] /] cell pin
    return [dict get [$kind $cell] $pin]
}

# ---- project --------------------------------------------------------------------------

set params {}
proc set_param {name value} {
    dict set ::params $name $value
    note set_param $name $value
}
namespace eval xhub {
    proc get_xstores {name} {
        if {$::env(FAKE_STORE_PARTS) eq ""} { error "invalid command name \"xhub::get_xstores\"" }
        if {$name ne "xilinx_board_store"} { refuse "there is no store '$name'" }
        return $name
    }
}
proc create_project {args} {
    if {[llength $args] != 5 || [lindex $args 0] ne "-force" || [lindex $args 3] ne "-part"} {
        refuse "create_project $args"
    }
    set ::project_name [lindex $args 1]
    set ::project_folder [lindex $args 2]
    note create_project {*}$args
    done project
}
proc current_project {} { need project; return project }
proc current_fileset {} { need project; return sources_1 }
proc get_board_parts {quiet pattern} {
    need project
    if {$quiet ne "-quiet"} { refuse "get_board_parts $quiet" }
    set parts $::env(FAKE_BOARD_PARTS)
    if {[dict exists $::params board.repoPaths] && "/the/store" in [dict get $::params board.repoPaths]} {
        lappend parts {*}$::env(FAKE_STORE_PARTS)
    }
    return [lsearch -all -inline $parts $pattern]
}
proc update_ip_catalog {} { need project; note update_ip_catalog; done catalog }

proc set_property {args} {
    if {[lindex $args 0] eq "-dict"} {
        lassign $args _ values object
    } else {
        lassign $args name value object
        set values [list $name $value]
    }
    if {$object eq ""} { refuse "set_property $args: no object" }
    dict for {name value} $values { set_one $name $value $object }
}
proc set_one {name value object} {
    if {[dict exists $::cell_ip [string trimleft $object /]]} {
        set cell [string trimleft $object /]
        set ip [dict get $::cell_ip $cell]
        set values [known_values $ip $name]
        set numeric [expr {$values eq "number" && [string is double -strict $value]}]
        if {!$numeric && $value ni $values} { refuse "$ip takes no $name = '$value'" }
        dict set ::setting $cell $name $value
    } elseif {"$object/$name" ni {project/board_part project/ip_repo_paths sources_1/top impl_1/strategy}} {
        refuse "'$object' has no property $name"
    }
    note set_property $name $value $object
}

# ---- block design ---------------------------------------------------------------------

proc create_bd_design {name} {
    need project
    set ::design_name $name
    note create_bd_design $name
    done design
}
proc create_bd_cell {args} {
    need design
    array set option [lrange $args 0 3]
    set name [lindex $args 4]
    if {[llength $args] != 5 || $option(-type) ne "ip"} { refuse "create_bd_cell $args" }
    if {[dict exists $::cell_ip $name]} { refuse "there is a cell '$name' already" }
    if {$option(-vlnv) eq "llama_pynq:hls:llama:1.0"} {
        need catalog
        set ip llama
    } elseif {[regexp {^xilinx\.com:ip:(smartconnect|proc_sys_reset|zynq_ultra_ps_e|processing_system7)$} $option(-vlnv) _ ip] == 0} {
        refuse "there is no IP '$option(-vlnv)'"
    }
    dict set ::cell_ip $name $ip
    note create_bd_cell $option(-vlnv) $name
    return /$name
}
proc apply_bd_automation {args} {
    array set option [lrange $args 0 3]
    set cell [string trimleft [lindex $args 4] /]
    set ip [dict get $::cell_ip $cell]
    if {$option(-rule) ne "xilinx.com:bd_rule:$ip"} { refuse "rule '$option(-rule)' for $ip" }
    set known [expr {$ip eq "processing_system7" ? "make_external apply_board_preset Master Slave" : "apply_board_preset"}]
    dict for {name value} $option(-config) {
        if {$name ni $known} { refuse "the rule for $ip has no $name" }
    }
    note apply_bd_automation $ip {*}$option(-config)
}
proc get_bd_cells {name} {
    if {![dict exists $::cell_ip $name]} { refuse "there is no cell '$name'" }
    return /$name
}
proc get_bd_intf_pins {path} { return [known_pin interfaces $path] }
proc get_bd_pins {path} { return [known_pin pins $path] }

proc connect_bd_intf_net {master slave} {
    foreach {pin kind} [list $master master $slave slave] {
        if {[kind_of interfaces $pin] ne $kind} { refuse "$pin is no $kind" }
        if {[dict exists $::links $pin]} { refuse "$pin is connected already" }
    }
    dict set ::links $master $slave
    dict set ::links $slave $master
    note connect_bd_intf_net $master $slave
}
proc connect_bd_net {source sink} {
    set out [kind_of pins $source]
    set in [kind_of pins $sink]
    if {"$out/$in" ni {clock_out/clock reset_out/reset}} { refuse "$source ($out) to $sink ($in)" }
    if {[dict exists $::driver $sink]} { refuse "$sink is connected already" }
    dict set ::driver $sink $source
    note connect_bd_net $source $sink
}

# ---- addresses ------------------------------------------------------------------------

# Processor port that an AXI master of the kernel reaches.
proc reached {master} {
    lassign [split [string trimleft [dict get $::links $master] /] /] cell
    return [lindex [split [dict get $::links /$cell/M00_AXI] /] end]
}
proc segments_of {block} {
    if {[regexp {^SAXIGP([2-5])$} $block _ gp]} {
        set n [expr {$gp - 2}]
        return [list HP${n}_DDR_LOW HP${n}_DDR_HIGH HP${n}_LPS_OCM HP${n}_QSPI]
    }
    if {[regexp {^S_AXI_HP([0-3])$} $block _ n]} { return HP${n}_DDR_LOWOCM }
    return {}
}
proc get_bd_addr_spaces {path} {
    lassign [split $path /] cell space
    set ip [dict get $::cell_ip $cell]
    set known [expr {$ip eq "llama" ? [lmap b $::env(FAKE_BUNDLES) {set _ Data_m_axi_$b}] : "Data"}]
    if {$space ni $known} { refuse "the cell $cell has no address space '$space'" }
    return /$path
}
proc get_bd_addr_segs {args} {
    set quiet [expr {[lindex $args 0] eq "-quiet"}]
    set pattern [lindex $args end]
    lassign [split $pattern /] cell block
    set ip [dict get $::cell_ip $cell]
    set names [expr {$ip eq "llama" ? ($block eq "s_axi_control" ? "Reg" : "") : [segments_of $block]}]
    set found [lsearch -all -inline [lmap name $names {set _ /$cell/$block/$name}] /$pattern]
    if {$found eq "" && !$quiet} { refuse "there is no address segment '$pattern'" }
    return $found
}
proc assign_bd_address {args} {
    set segment [lindex [lsearch -all -inline -glob $args */*/*] end]
    array set option {-offset "" -range ""}
    foreach name {-offset -range -target_address_space} {
        if {[set at [lsearch -exact $args $name]] >= 0} { set option($name) [lindex $args $at+1] }
    }
    set space $option(-target_address_space)
    if {$segment in [dict_or_empty $::assigned $space]} { refuse "$segment is in $space already" }
    dict lappend ::assigned $space $segment
    note assign_bd_address $space $segment $option(-offset) $option(-range)
    if {[string match */s_axi_control/Reg $segment]} {
        # UG585: M_AXI_GP0 has 1 GiB from 0x40000000; UG1085: M_AXI_HPM0_FPD 256 MiB from 0xA0000000.
        set window [expr {[dict exists $::cell_ip zynq_ultra_ps_e_0] ? {0xA0000000 0xAFFFFFFF} : {0x40000000 0x7FFFFFFF}}]
        lassign $window low high
        if {$option(-offset) < $low || $option(-offset) + $option(-range) - 1 > $high} {
            refuse "address $option(-offset) is outside $low to $high"
        }
        if {$option(-offset) % $option(-range) != 0} { refuse "address $option(-offset) is not aligned" }
    }
}
proc exclude_bd_addr_seg {flag space segment} {
    if {$flag ne "-target_address_space"} { refuse "exclude_bd_addr_seg $flag" }
    dict lappend ::excluded $space $segment
}
proc dict_or_empty {dictionary key} {
    return [expr {[dict exists $dictionary $key] ? [dict get $dictionary $key] : ""}]
}

proc validate_bd_design {} {
    dict for {cell ip} $::cell_ip {
        dict for {pin kind} [interfaces $cell] {
            if {![dict exists $::links /$cell/$pin]} { refuse "/$cell/$pin is not connected" }
        }
        dict for {pin kind} [pins $cell] {
            if {$kind in {clock reset} && ![dict exists $::driver /$cell/$pin]} {
                refuse "/$cell/$pin is not connected"
            }
        }
    }
    if {[llength [dict_or_empty $::assigned /$::processor/Data]] != 1} { refuse "no registers" }
    foreach bundle $::env(FAKE_BUNDLES) {
        set port [reached /llama/m_axi_$bundle]
        set space /llama/Data_m_axi_$bundle
        set seen [dict_or_empty $::assigned $space]
        regexp {HP([0-3])} $port _ n
        set block [expr {[dict exists $::cell_ip zynq_ultra_ps_e_0] ? "SAXIGP[expr {$n + 2}]" : $port}]
        set all [lmap name [segments_of $block] {set _ /$::processor/$block/$name}]
        foreach segment $seen {
            if {$segment ni $all} { refuse "$bundle reaches $port, and not $segment" }
        }
        foreach segment $all {
            if {$segment ni $seen && $segment ni [dict_or_empty $::excluded $space]} {
                refuse "$segment is neither in $space nor excluded"
            }
        }
        note reaches $bundle $port {*}[lmap segment $seen {lindex [split $segment /] end}]
    }
    note validate_bd_design
    done validated
}
proc save_bd_design {} { need validated; note save_bd_design; done saved }

# ---- implementation -------------------------------------------------------------------

proc get_files {name} {
    need saved
    if {$name ne "$::design_name.bd"} { refuse "there is no file '$name'" }
    return $name
}
proc make_wrapper {args} {
    set ::wrapper $::project_folder/$::project_name.gen/sources_1/bd/$::design_name/hdl/${::design_name}_wrapper.v
    note make_wrapper {*}$args
    done wrapper
    return $::wrapper
}
proc add_files {flag path} {
    need wrapper
    if {$path ne $::wrapper} { refuse "there is no file '$path'" }
    note add_files $flag $path
}
proc update_compile_order {args} { note update_compile_order {*}$args }
proc get_runs {name} {
    if {$name ne "impl_1"} { refuse "there is no run '$name'" }
    return $name
}
proc launch_runs {args} {
    need wrapper
    note launch_runs {*}$args
    done launched
}
proc wait_on_run {run} {
    need launched
    note wait_on_run $run
    done run
    if {$::env(FAKE_PROGRESS) ne "100%"} return
    set folder $::project_folder/$::project_name
    put_file $folder.runs/impl_1/${::design_name}_wrapper.bit "bits of $::design_name"
    put_file $folder.gen/sources_1/bd/$::design_name/hw_handoff/$::design_name.hwh "<EDKSYSTEM/>"
}
proc put_file {path text} {
    file mkdir [file dirname $path]
    set file [open $path w]
    puts -nonewline $file $text
    close $file
}
# Actual fabric clock: the PLL divided by an integer, nearest to the request.
proc actual_clock {cell name} {
    set asked [dict get $::setting $cell [string map {ACT_ "" PCW_ACT PCW} $name]]
    set pll $::env(FAKE_PLL_MHZ)
    set nearest $pll
    for {set divisor 1} {$divisor < 64} {incr divisor} {
        set clock [expr {double($pll) / $divisor}]
        if {abs($clock - $asked) < abs($nearest - $asked)} { set nearest $clock }
    }
    return [format %.6f $nearest]
}
proc get_property {name object} {
    set cell [string trimleft $object /]
    if {[dict exists $::cell_ip $cell]} {
        switch [dict get $::cell_ip $cell]/$name {
            zynq_ultra_ps_e/CONFIG.PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ -
            processing_system7/CONFIG.PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ { return [actual_clock $cell $name] }
        }
        return ""
    }
    if {"$object/$name" eq "xilinx_board_store/LOCAL_ROOT_DIR"} { return /the/store }
    need run
    switch $object/$name {
        impl_1/PROGRESS { return $::env(FAKE_PROGRESS) }
        impl_1/STATUS { return [expr {$::env(FAKE_PROGRESS) eq "100%" ? "write_bitstream Complete!" : "route_design ERROR"}] }
    }
    refuse "'$object' has no property $name"
}
proc open_run {run} { need run; note open_run $run; done open }
proc report_utilization {flag path} { report utilization.rpt $flag $path }
proc report_timing_summary {flag path} { report timing.rpt $flag $path }
proc report {name flag path} {
    need open
    if {$flag ne "-file"} { refuse "a report's option $flag" }
    note report $path
    file copy -force $::env(FAKE_REPORTS)/$name $path
}

source [lindex $argv 0]

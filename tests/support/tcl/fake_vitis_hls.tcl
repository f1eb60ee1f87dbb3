# Fakes of the Vitis HLS commands that hls_src/scripts/hls.tcl uses, for tclsh. They refuse options
# that UG1399 does not list, check the order of the commands, and log each call to $FAKE_LOG, one
# Tcl list per line. Not compared with a real Vitis.

set log [open $env(FAKE_LOG) w]
set state {}
proc note {args} {
    puts $::log $args
    flush $::log
}
proc refuse {message} {
    error "fake tool: $message"
}
proc need {what} {
    if {$what ni $::state} { refuse "this needs to come after: $what" }
}

# known: option -> 1 if a value follows
proc only {command known args} {
    set rest {}
    for {set i 0} {$i < [llength $args]} {incr i} {
        set word [lindex $args $i]
        if {![string match -* $word]} {
            lappend rest $word
            continue
        }
        regexp {^(-\w+)(=.*)?$} $word _ name value
        if {![dict exists $known $name]} { refuse "$command has no option $name" }
        if {[dict get $known $name] && $value eq ""} { incr i }
    }
    note $command {*}$args
    return $rest
}

proc open_project {args} {
    set ::project [only open_project {-reset 0} {*}$args]
    lappend ::state project
}
proc set_top {name} { need project; set ::top_name $name; note set_top $name; lappend ::state top }
proc add_files {args} {
    need top
    set files [only add_files {-tb 0 -cflags 1 -csimflags 1} {*}$args]
    foreach file [concat {*}$files] {
        if {![file exists $file]} { refuse "there is no file $file" }
    }
    lappend ::state files
}
proc open_solution {args} {
    need files
    only open_solution {-reset 0 -flow_target 1} {*}$args
    set ::flow [lindex $args [lsearch $args -flow_target]+1]
    if {$::flow ni {vivado vitis}} { refuse "flow_target $::flow" }
    lappend ::state solution
}
proc set_part {part} { need solution; note set_part $part; lappend ::state part }
proc create_clock {args} {
    need part
    only create_clock {-period 1 -name 1} {*}$args
    lappend ::state clock
}
proc config_compile {args} { only config_compile {-unsafe_math_optimizations 0 -no_signed_zeros 0} {*}$args }
proc config_op {op args} {
    if {$op ni {fadd fsub facc fmacc fmadd}} { refuse "config_op $op" }
    set impl [lindex $args [lsearch $args -impl]+1]
    if {$impl ni [expr {$op in {fadd fsub} ? {fabric fulldsp} : {auto none}}]} { refuse "$op -impl $impl" }
    only config_op {-impl 1 -latency 1} {*}$args
    note op $op
}
proc config_interface {args} { only config_interface {-m_axi_addr64 0 -m_axi_max_widen_bitwidth 1} {*}$args }
set export_options {-vendor xilinx.com -library hls -version 1.0}
proc config_export {args} {
    need solution
    only config_export {-vendor 1 -library 1 -version 1} {*}$args
    set ::export_options [dict merge $::export_options $args]
}
proc csim_design {args} { need clock; only csim_design {-ldflags 1 -argv 1} {*}$args }
proc csynth_design {} {
    need clock
    note csynth_design
    lappend ::state synthesised
    file mkdir $::project/solution/syn/report
}
proc export_design {args} {
    need synthesised
    only export_design {-format 1 -output 1} {*}$args
    set format [lindex $args [lsearch $args -format]+1]
    if {$format ne [expr {$::flow eq "vitis" ? "xo" : "ip_catalog"}]} { refuse "$format with $::flow" }
    set name [join [list [dict get $::export_options -vendor] [dict get $::export_options -library] $::top_name [dict get $::export_options -version]] :]
    note exported $format $name
    if {$format eq "xo"} {
        close [open [lindex $args [lsearch $args -output]+1] w]
    } else {
        file mkdir $::project/solution/impl/ip
    }
}

source [lindex $argv 0]

//! `strobe sim`, the program.

use strobe_tests::run;

#[test]
fn a_seed_is_a_run_and_a_part_of_it_too() {
    let (well, said, error) = run("strobe", &["sim", "--seed", "4", "--seeds", "2", "--jobs", "2"]);
    assert!(well, "{error}");
    assert!(said.contains("2 seeds") && said.contains("rows acknowledged"), "{said}");
    let part = ["sim", "--seed", "5", "--only", "1,2", "--until-ms", "2000", "--trace"];
    let (well, said, error) = run("strobe", &part);
    assert!(well, "{error}");
    assert!(said.contains("broker 1 leads in term") && said.contains("all is healed"), "{said}");
    assert_eq!(run("strobe", &part).1, said, "the same again");
}

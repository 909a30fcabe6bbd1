//! The text of the guide, which `chatchain guide` prints and GitHub shows. Knows nothing of the program.
//!
//! Each topic is one Markdown file of this folder and answers one question of a user. A link to a topic is written
//! `[feed]` and defined at the end of its file as `feed.md`, where GitHub finds it. In Markdown the first definition
//! of a link wins: `topic_links.md`, which comes before each text in this documentation, leads the same links to the
//! modules below.
#![doc = ""]
#![doc = include_str!("topic_links.md")]
#![doc = include_str!("README.md")]

/// One topic of the guide.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// What a user types to read it.
    pub name: &'static str,
    /// The whole text in Markdown. The first line is the title.
    pub text: &'static str,
}

impl Topic {
    /// The title, one line.
    pub fn title(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches(['#', ' '])
    }
}

/// Finds a topic by its name. Upper case is accepted.
pub fn topic(name: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.name.eq_ignore_ascii_case(name))
}

/// The topic whose name, or a word of whose title, begins like this or else is most like this.
pub fn nearest(name: &str) -> &'static Topic {
    let name = name.to_lowercase();
    let distance = |word: &str| {
        let word = word.to_lowercase();
        if word.starts_with(&name) { 0 } else { strsim::damerau_levenshtein(&name, &word) }
    };
    let distance = |topic: &&Topic| {
        let words = topic.title().split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3);
        words.chain([topic.name]).map(distance).min()
    };
    TOPICS.iter().min_by_key(distance).expect("the guide has topics")
}

macro_rules! topics {
    ($($name:ident)*) => {
        /// All topics, in the order in which a new user reads them.
        pub const TOPICS: &[Topic] =
            &[$(Topic { name: stringify!($name), text: include_str!(concat!(stringify!($name), ".md")) }),*];

        $(
            #[doc = include_str!("topic_links.md")]
            #[doc = include_str!(concat!(stringify!($name), ".md"))]
            pub mod $name {}
        )*
    };
}

topics! {
    network send read feed status machines members key proxy disks http configuration commands promises internals development
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_found_by_its_name() {
        assert_eq!(
            topic("feed").expect("a topic").title(),
            "How to follow new messages and continue after a break"
        );
        assert_eq!(topic("HTTP").expect("a topic").name, "http");
        assert!(topic("").is_none() && topic("feeds").is_none());
    }

    #[test]
    fn the_nearest_topic_has_a_similar_name_or_is_about_the_word() {
        for (typed, meant) in [
            ("htp", "http"),
            ("Sned", "send"),
            ("config", "configuration"),
            ("nodes", "members"),
            ("errors", "http"),
            ("exit", "commands"),
            ("damage", "disks"),
        ] {
            assert_eq!(nearest(typed).name, meant, "{typed}");
        }
    }
}

import type { Turn } from "@holdfast/testing/gemini";

/** What the fake Gemini Live hears and says, turn by turn: whenever the microphone becomes loud, the next turn begins. */
export const script: Turn[] = [
  {
    user: "Can you look at issue ENG-142 and start a run that refactors the auth module?",
    say: "Sure. ENG-142 is about token refresh. I’ll start a Codegen run for it. ",
    tool: { name: "start_run", args: { prompt: "Refactor the auth module", issue: "ENG-142" } },
    done: "The run is on its way.",
  },
  { user: "How long will it take?", say: "About ten minutes, as the last one did." },
  { user: "And does it touch the session store?", say: "Only where it reads the refresh token." },
  { user: "Fine. Add a test for expired tokens.", say: "Good idea. I’ll ask the agent to cover expired tokens." },
  { user: "Just expired ones, please.", say: "Understood, only expired tokens." },
  {
    user: "And set the issue to in progress.",
    say: "Moving it. ",
    tool: { name: "move_issue", args: { issue: "ENG-142", state: "In Progress" } },
    done: "ENG-142 is in progress now.",
  },
  { user: "Who else works on it?", say: "Lea had it until Tuesday." },
  { user: "What is left of the sprint?", say: "Three issues, and two days." },
  { user: "Tell me tomorrow how the run went.", say: "I will." },
  { user: "Thank you.", say: "You are welcome." },
];
